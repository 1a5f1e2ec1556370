"""Ids as customers see them."""

from __future__ import annotations

from shared.ids import is_id, new_id


def test_ids_sort_by_creation_and_hold_no_dot() -> None:
    """Later ids sort later (to the millisecond), are unique, and have 26 characters after the prefix."""
    ids = [new_id("job") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)
    assert all(len(i) == 30 and "." not in i and is_id(i, "job") for i in ids)


def test_files_have_a_hyphen() -> None:
    """As OpenAI's tools expect; the underscore of earlier files is still known."""
    made = new_id("file")
    assert made.startswith("file-")
    assert is_id(made, "file")
    assert is_id(made.replace("-", "_"), "file")
    assert not is_id(new_id("job").replace("_", "-"), "job")


def test_other_texts_are_no_ids() -> None:
    """Wrong prefix, length, case or alphabet."""
    good = new_id("job")
    for text in ["", "job_", good[:-1], good + "0", good.upper(), good.replace("job", "img"), "job_" + "u" * 26, good + "\n"]:
        assert not is_id(text, "job")
