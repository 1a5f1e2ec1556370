"""A customer's URL leads to the public internet or to what the operator allows, in whatever spelling it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.egress import EgressPolicy
from shared.errors import ForbiddenAddressError, RequestError, StartupError
from tests.fakes import FakeResolver

INTERNET = EgressPolicy()


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://EXAMPLE.com:443/A?b=c#d", "https://example.com/A?b=c"),
        ("http://example.com.:80/", "http://example.com/"),
        ("https://example.com:8443/x", "https://example.com:8443/x"),
        ("https://bücher.example/ä b".replace(" ", "%20"), "https://xn--bcher-kva.example/%C3%A4%20b"),
        ("https://faß.example/", "https://xn--fa-hia.example/"),
        ("http://my_host.example/", "http://my_host.example/"),
        ("http://[2606:4700:4700:0:0::1111]:8443/", "http://[2606:4700:4700::1111]:8443/"),
        ("http://8.8.8.8", "http://8.8.8.8/"),
        ("http://0x08080808/", "http://8.8.8.8/"),
        ("http://8.8.2056/", "http://8.8.8.8/"),
        ("http://h.example/%0d%0aX:1?q=%20", "http://h.example/%0d%0aX:1?q=%20"),
    ],
)
def test_a_url_gets_one_spelling(url: str, spelled: str) -> None:
    """Case, default ports, IDNA, fragments and the old number forms of addresses disappear."""
    assert str(INTERNET.check_url(url, "webhook")) == spelled


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "http"),
        ("example.com/x", "http"),
        ("ftp://example.com/", "http"),
        ("file:///etc/passwd", "http"),
        ("gopher://example.com/", "http"),
        ("https:///x", "host"),
        ("https://", "host"),
        ("https://user@example.com/", "user name"),
        ("https://user:secret@example.com/", "user name"),
        ("https://public.example@10.0.0.1/", "user name"),
        ("https://example.com:99999/", "valid URL"),
        ("https://example.com:x/", "valid URL"),
        ("https://example.com:0/", "port 0"),
        ("https://exa mple.com/", "spaces"),
        ("https://example.com/\r\nX: 1", "control"),
        ("https://exam\tple.com/", "control"),
        ("https://example.com\\@10.0.0.1/", "backslashes"),
        ("https://a..b/", "host"),
        ("https://-a.example/", "host"),
        ("https://127%2e0.0.1/", "host"),
        ("https://256.1.1.1/", "host"),
        ("https://1.2.3.4.5/", "host"),
        ("https://[::1/", "valid URL"),
        ("https://[::g]/", "valid"),
        ("https://[fe80::1%25eth0]/", "interface"),
        ("https://" + "a" * 64 + ".example/", "host"),
        ("https://" + "a." * 200 + "example/", "host"),
        ("https://example.com/" + "a" * 5000, "4096"),
        ("https://example.com/\ud800", "control"),
    ],
)
def test_what_is_no_plain_url_is_refused(url: str, reason: str) -> None:
    """The error names the field and says what is wrong."""
    with pytest.raises(RequestError, match=rf"^webhook\.url: .*{reason}") as caught:
        INTERNET.check_url(url, "webhook.url")
    assert caught.value.code == "invalid_request"
    assert caught.value.param == "webhook.url"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "１２７.0.0.1",
        "①②⑦.0.0.1",
        "127。0。0。1",
        "0",
        "0.0.0.0",  # noqa: S104 - refused here, not bound
        "10.0.0.1",
        "169.254.1.1",
        "192.168.1.1",
        "100.64.0.1",
        "198.18.0.1",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fec0::1]",
        "[fe80::1]",
        "[fc00::1]",
        "[5f00::1]",
        "[3fff::1]",
        "[ff02::1]",
    ],
)
def test_numbers_of_inside_addresses_are_refused_at_once(host: str) -> None:
    """No spelling of a private or local address passes, and the text says what an operator can do."""
    with pytest.raises(ForbiddenAddressError, match=r"^images\.0\.url: .*[Oo]perator") as caught:
        INTERNET.check_url(f"http://{host}/", "images.0.url")
    assert caught.value.code == "forbidden_address"
    assert caught.value.param == "images.0.url"


def test_every_address_of_a_name_is_checked() -> None:
    """One inside address among public ones refuses the host, and the text keeps the inside address to itself."""
    policy = EgressPolicy(resolver=FakeResolver(mixed_example=[["93.184.216.34", "2606:4700::1", "10.1.2.3"]]))
    with pytest.raises(ForbiddenAddressError) as caught:
        policy.resolve("mixed.example", 443, "webhook")
    assert "10.1.2.3" not in caught.value.detail
    assert "operator" in caught.value.detail
    # Who reads it may be a customer, who has no settings.
    assert "GLMQ_" not in caught.value.detail


def test_a_name_is_asked_for_each_time() -> None:
    """A DNS answer that flips from public to private is caught at the second look."""
    policy = EgressPolicy(resolver=FakeResolver(flip_example=[["93.184.216.34"], ["127.0.0.1"]]))
    assert [str(address) for address in policy.resolve("flip.example", 443, "webhook")] == ["93.184.216.34"]
    with pytest.raises(ForbiddenAddressError):
        policy.resolve("flip.example", 443, "webhook")


def test_an_unknown_name_is_not_found() -> None:
    """No address is not a forbidden address."""
    for resolver in (FakeResolver(), FakeResolver(gone_example=[[]]), FakeResolver(gone_example=[["nonsense"]])):
        with pytest.raises(RequestError, match="not found") as caught:
            EgressPolicy(resolver=resolver).resolve("gone.example", 80, "webhook")
        assert caught.value.code == "input_fetch_failed"


def test_public_addresses_have_three_ports() -> None:
    """80, 443 and 8443; a name's port is refused before DNS when nothing is allow-listed, else once its address is known."""
    with pytest.raises(ForbiddenAddressError, match="port 22"):
        INTERNET.check_url("http://example.com:22/", "webhook")
    policy = EgressPolicy("10.0.0.0/8", FakeResolver(example_com=[["93.184.216.34"]], inside_example=[["10.1.2.3"]]))
    policy.check_url("http://example.com:22/", "webhook")
    with pytest.raises(ForbiddenAddressError, match="port 22"):
        policy.resolve("example.com", 22, "webhook")
    assert [str(address) for address in policy.resolve("inside.example", 22, "webhook")] == ["10.1.2.3"]


def test_the_operator_may_allow_inside_addresses() -> None:
    """Listed addresses and ranges pass on any port; the rest stays refused."""
    policy = EgressPolicy(" 10.1.0.0/16, 192.168.7.9 ,::1,")
    for url in ("http://10.1.2.3:9000/", "http://192.168.7.9:81/", "http://[::1]:8080/"):
        policy.check_url(url, "webhook")
    for url in ("http://10.2.0.1/", "http://192.168.7.8/", "http://127.0.0.1/"):
        with pytest.raises(ForbiddenAddressError):
            policy.check_url(url, "webhook")


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "100.100.100.200", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]"]
)
def test_metadata_services_are_never_allowed(host: str) -> None:
    """Not even by a range that holds everything, or by their own address."""
    for allow in ("0.0.0.0/0,::/0", "169.254.169.254,100.100.100.200,fd00:ec2::254"):
        with pytest.raises(ForbiddenAddressError, match=r"never allowed|not public"):
            EgressPolicy(allow).check_url(f"http://{host}/", "webhook")


def test_allowing_a_translator_does_not_allow_what_is_behind_it() -> None:
    """A NAT64 prefix on the list opens the public IPv4 internet, not the private networks."""
    policy = EgressPolicy("64:ff9b::/96")
    policy.check_url("http://[64:ff9b::808:808]/", "webhook")
    with pytest.raises(ForbiddenAddressError):
        policy.check_url("http://[64:ff9b::a00:1]/", "webhook")


@pytest.mark.parametrize("allow", ["10.0.0.0/33", "inside.example", "10.1.2.3/8", "10.0.0.0/8;11.0.0.0/8"])
def test_a_wrong_list_refuses_the_start(allow: str) -> None:
    """The operator learns the variable and the entry."""
    with pytest.raises(StartupError, match="GLMQ_EGRESS_ALLOW"):
        EgressPolicy(allow)


@given(st.text(max_size=60) | st.builds("http://{}".format, st.text(max_size=40)))
def test_no_text_breaks_the_parser(url: str) -> None:
    """Any text is a URL or a RequestError, and a checked URL checks to itself."""
    try:
        parsed = INTERNET.check_url(url, "webhook")
    except RequestError:
        return
    assert INTERNET.check_url(str(parsed), "webhook") == parsed
