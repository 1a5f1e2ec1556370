"""Terms that an operator lists are found however they are written, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.api.content_policy import ContentPolicy
from services.api.field_errors import ErrorCollector, InvalidFieldsError
from services.api.schemas import JobRequest
from shared.errors import StartupError

TERMS = "# What may not be drawn\nblorp\nblister\n\nhell hound\n裸体\nScum\n1488\n***\nstraße\n"


@pytest.fixture
def policy(tmp_path: Path) -> ContentPolicy:
    (tmp_path / "terms.txt").write_text(TERMS, encoding="utf-8")
    return ContentPolicy(str(tmp_path / "terms.txt"))


def judge(policy: ContentPolicy, prompt: str, *texts: str) -> None:
    errors = ErrorCollector()
    policy.check(JobRequest(prompt=prompt, text=list(texts)), errors)
    errors.raise_any()


@pytest.mark.parametrize(
    "written",
    [
        *(
            "blorp",
            "BLORP",
            "a Blorp!",
            "bl0rp!",
            "bl!ster",
            "b l o r p",
            "b.l.o.r.p",
            "cat,b-l-o-r-p",
            "ｂｌｏｒｐ",
            "bl\u200borp",
            "blörp",
        ),
        *("hell  hound", "hell-hound", "HELL\nHOUND", "一个裸体人", "裸 体", "裸\u200b体", "1488", "STRASSE"),
    ],
)
def test_a_term_is_found(policy: ContentPolicy, written: str) -> None:
    """In other letters, hidden by punctuation, spelled out, among words of any script."""
    with pytest.raises(InvalidFieldsError) as caught:
        judge(policy, written)
    assert (caught.value.code, caught.value.param) == ("content_rejected", "prompt")
    assert "blorp" not in caught.value.detail.lower()


@pytest.mark.parametrize("written", ["blorpish", "Scunthorpe", "hello hound", "hell of a hound", "14880", "a cat", "***", "bl orp"])
def test_other_words_are_not(policy: ContentPolicy, written: str) -> None:
    """Words are whole words, and lines without letters forbid nothing."""
    judge(policy, written)


def test_every_field_is_told(policy: ContentPolicy) -> None:
    """Prompt and texts alike, by their names."""
    with pytest.raises(InvalidFieldsError) as caught:
        judge(policy, "blorp", "fine", "a blorp")
    assert [error.param for error in caught.value.errors] == ["prompt", "text.1"]


def test_without_a_file_everything_is_allowed() -> None:
    """As it is unless an operator says otherwise."""
    judge(ContentPolicy(""), "blorp")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a" * (1 << 20) + b"b"])
def test_a_file_that_cannot_be_read_refuses_the_start(tmp_path: Path, content: bytes | None) -> None:
    """Rather no service than one without its rules; the setting is named."""
    path = tmp_path / "terms.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartupError, match="GLMQ_BLOCKED_TERMS"):
        ContentPolicy(str(path))
