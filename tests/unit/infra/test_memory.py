"""What a data folder remembers."""

from __future__ import annotations

import os
from pathlib import Path

from infra.embedded.memory import Memory, new_password


def test_a_value_is_made_once(tmp_path: Path) -> None:
    """What was made in one run is the same in the next."""
    first = Memory(tmp_path / "memory.json").recall("redis", "password", new_password)

    assert Memory(tmp_path / "memory.json").recall("redis", "password", new_password) == first


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """The file holds secrets: no moment and no umask makes it readable by others."""
    before = os.umask(0)
    try:
        Memory(tmp_path / "memory.json").note("s3", port=1)
    finally:
        os.umask(before)

    assert (tmp_path / "memory.json").stat().st_mode & 0o777 == 0o600


def test_a_crash_while_writing_loses_nothing(tmp_path: Path) -> None:
    """A half-written successor left by a crash is not read, and does not block the next write."""
    memory = Memory(tmp_path / "memory.json")
    memory.note("s3", port=1)
    (tmp_path / ".memory.json.new").write_text("{")

    again = Memory(tmp_path / "memory.json")
    again.note("s3", port=2)

    assert Memory(tmp_path / "memory.json").peek("s3", "port") == 2
