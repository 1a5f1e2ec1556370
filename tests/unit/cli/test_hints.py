"""What the command tells a person to type next."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.hints import command_here, next_steps


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Python of an environment that has the command, in the folder where the shell is."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "glmq").touch(mode=0o755)
    return folder / "python"


def test_by_name_where_the_shell_finds_it(python: Path, tmp_path: Path) -> None:
    """In an environment that is active the name is enough."""
    assert command_here(python, str(python.parent), tmp_path) == "glmq"


def test_by_path_where_it_does_not(python: Path, tmp_path: Path) -> None:
    """After `make demo`, which activates nothing, or where the shell would find another one, the path from here is told."""
    assert command_here(python, "", tmp_path) == ".venv/bin/glmq"
    other = tmp_path / "other"
    other.mkdir()
    (other / "glmq").touch(mode=0o755)
    assert command_here(python, str(other), tmp_path) == ".venv/bin/glmq"


def test_from_another_folder(python: Path, tmp_path: Path) -> None:
    """Elsewhere the whole path is told."""
    assert command_here(python, "", tmp_path / "away") == str(python.with_name("glmq"))


def test_steps_name_the_folder_that_is_not_the_usual_one() -> None:
    """A stack that has ended is begun again first; one that runs is stopped last."""
    ended = next_steps("glmq", Path("/a b"), running=False)
    assert ended[:2] == ["glmq up --detach --data '/a b'", "eval \"$(glmq status --env --data '/a b')\""]
    assert next_steps("glmq", None, running=True)[-1] == "glmq status; glmq down"
