"""The data folder: who may look into it, who holds it, what is told through it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli.data_folder import PROJECT, DataFolder, Row, StackState, default_data_folder


def test_others_cannot_look_into_it(tmp_path: Path) -> None:
    """A new folder is private, though under root others may pass through to a folder of their own; files are private in any case."""
    data = DataFolder(tmp_path / "deep" / "data")
    before = os.umask(0)
    try:
        data.make()
        data.write_state(StackState("ready"))
    finally:
        os.umask(before)

    assert data.path.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
    assert data.logs.stat().st_mode & 0o777 == 0o700
    assert (data.path / "stack.json").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    """glmq does not change what it did not make."""
    tmp_path.chmod(0o755)

    DataFolder(tmp_path).make()

    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """While one holds the folder nobody else gets it, and asking does not disturb; afterwards it is free."""
    data, other = DataFolder(tmp_path), DataFolder(tmp_path)

    with data.held() as ours:
        assert ours
        assert other.is_held()
        with other.held() as theirs:
            assert not theirs

    assert not other.is_held()


def test_state_is_read_as_written(tmp_path: Path) -> None:
    """What the supervisor tells arrives whole."""
    data = DataFolder(tmp_path)
    state = StackState("ready", pid=1, url="http://x", exports={"A": "b"}, rows=[Row("api", "services.api", 8080, 2, "then", 1.5)])

    data.write_state(state)

    assert data.read_state() == state


def test_nothing_was_told_yet(tmp_path: Path) -> None:
    """A folder that no stack ever used holds no state, and nobody holds it."""
    assert DataFolder(tmp_path / "none").read_state() is None
    assert not DataFolder(tmp_path / "none").is_held()


def test_large_logs_are_put_aside(tmp_path: Path) -> None:
    """A log does not grow over years; the last large one is kept."""
    data = DataFolder(tmp_path)
    data.make()
    data.log("api").write_bytes(b"x" * (11 << 20))
    data.log("s3").write_text("short")

    data.rotate_logs()

    assert [path.name for path in sorted(data.logs.iterdir())] == ["api.log.1", "s3.log"]


@pytest.mark.parametrize(("environ", "expected"), [({"GLMQ_DATA": "/srv/glmq"}, Path("/srv/glmq")), ({}, PROJECT / ".glmq")])
def test_the_usual_folder(environ: dict[str, str], expected: Path) -> None:
    """`GLMQ_DATA`, else `.glmq` in the checkout."""
    assert default_data_folder(environ) == expected


def test_long_lines_do_not_flood_a_message(tmp_path: Path) -> None:
    """The end of a log in an error message stays readable."""
    data = DataFolder(tmp_path)
    data.make()
    data.log("api").write_text("first\n" * 100 + "x" * 10_000 + "\n")

    tail = data.log_tail("api")

    assert len(tail) < 2000
    assert str(data.log("api")) in tail
