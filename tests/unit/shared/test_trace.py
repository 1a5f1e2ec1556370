"""Trace contexts: what is accepted, and what is handed on."""

from __future__ import annotations

import pytest

from shared.trace import TraceContext, parse_trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_context_is_handed_on_unchanged() -> None:
    """Both headers come out as they went in."""
    context = parse_trace(PARENT, "rojo=00f067aa0ba902b7,congo@x=t61rcWkgMzE")
    assert context is not None
    assert context.trace_id == TRACE
    assert context.headers() == {"traceparent": PARENT, "tracestate": "rojo=00f067aa0ba902b7,congo@x=t61rcWkgMzE"}
    assert TraceContext.from_headers(context.headers()) == context
    assert TraceContext.from_headers(None) is None


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        PARENT.upper(),
        PARENT + "-x",
        PARENT[:-1],
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{PARENT},{PARENT}",
        f"{PARENT}\r\nX: y",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_what_is_no_context(wrong: str) -> None:
    """A wrong header is as none, and its state is nothing without it."""
    assert parse_trace(wrong, "a=b") is None


def test_a_later_version() -> None:
    """Is read as far as it is known."""
    assert parse_trace(f"01-{TRACE}-{SPAN}-09-what-else", None) == TraceContext(f"00-{TRACE}-{SPAN}-01")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("a=1", "a=1"),
        (" a=1 ,\tb=2 , ", "a=1,b=2"),
        ("", None),
        ("a", None),
        ("A=1", None),
        ("a=1,a=2", None),
        ("a=é", None),
        ("a=1\r\nX: y", None),
        (",".join(f"k{index}=1" for index in range(33)), None),
        ("a=" + "x" * 256, "a=" + "x" * 256),
        ("a=" + "x" * 257, None),
        ("a=" + "x" * 250 + ",b=" + "x" * 250 + ",c=" + "x" * 20, None),
    ],
)
def test_states(sent: str, kept: str | None) -> None:
    """A wrong state is left out; the parent stays."""
    assert parse_trace(PARENT, sent) == TraceContext(PARENT, kept)
