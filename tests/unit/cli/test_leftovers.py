"""Ending what a killed supervisor could not."""

from __future__ import annotations

import os
from pathlib import Path

from cli.data_folder import DataFolder, Row, StackState
from cli.leftovers import MARK, end_leftovers, stack_mark
from infra.embedded.process import ProcessMark, has_exited, spawn


def make_data(tmp_path: Path) -> DataFolder:
    data = DataFolder(tmp_path / "data")
    data.make()
    return data


def test_what_the_state_names_is_ended(tmp_path: Path) -> None:
    """A process that the last state names, and that is still the same one, is ended."""
    data = make_data(tmp_path)
    process = spawn(["/bin/sleep", "60"], env={}, log=data.log("left"), cwd=data.path)
    mark = ProcessMark.of(process.pid)
    assert mark is not None
    data.write_state(StackState("ready", rows=[Row("worker", "x", pid=mark.pid, birth=mark.birth)]))

    assert end_leftovers(data) == 1

    assert not mark.is_alive()
    process.wait()


def test_a_reused_id_is_left_alone(tmp_path: Path) -> None:
    """A pid that belongs to another process by now - here the test itself - is not touched."""
    data = make_data(tmp_path)
    data.write_state(StackState("ready", rows=[Row("worker", "x", pid=os.getpid(), birth="of another time")]))

    assert end_leftovers(data) == 0


def test_what_carries_the_stacks_mark_is_ended(tmp_path: Path) -> None:
    """What a role started is found by its environment, though nothing names it; another stack's is left alone."""
    data = make_data(tmp_path)
    ours, others = (
        spawn(["/bin/sleep", "60"], env={MARK: mark}, log=data.log("left"), cwd=data.path)
        for mark in (stack_mark(data.memory()), "another")
    )

    assert end_leftovers(data) == 1

    ours.wait()
    assert not has_exited(others)
    others.kill()
    others.wait()
