"""What `glmq status` says of each process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from cli.data_folder import DataFolder, Row, StackState
from cli.status import look, running_state
from infra.embedded.ports import free_port
from infra.embedded.process import ProcessMark


def word(row: Row) -> str:
    ((_, health),) = look(StackState("ready", url="http://127.0.0.1:1", rows=[row]))
    return f"{'+' if health.well else '-'} {health.word}"


def own(name: str, port: int | None = None) -> Row:
    mark = ProcessMark.of(os.getpid())
    assert mark is not None
    return Row(name, "here", port, mark.pid, mark.birth)


def test_a_living_process_is_running() -> None:
    """Without a port, being there is all that can be seen."""
    assert word(own("dispatcher")) == "+ running"


def test_a_dead_process_is_told() -> None:
    """A process that died since the supervisor last looked is not called well."""
    row = own("dispatcher")
    row.birth = "of another time"

    assert word(row) == "- gone"
    assert word(Row("dispatcher", "here")) == "- starting again"


def test_a_server_must_answer() -> None:
    """A server that runs but does not accept connections is not well."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert word(own("redis", listener.getsockname()[1])) == "+ answers"
    assert word(own("redis", free_port())) == "- silent"


def test_an_external_server_is_not_judged() -> None:
    """Somebody else's server has no process here; the API says whether it reaches it."""
    assert word(Row("postgres", "GLMQ_DATABASE_URL in the environment", 5432, is_external=True)) == "+ not ours"


def test_an_api_that_is_not_there_is_told() -> None:
    """The API's health is what it answers itself."""
    assert word(own("api")) == "- silent"


def test_a_folder_without_a_stack(tmp_path: Path) -> None:
    """The state that a stopped stack left is not taken for a running one."""
    data = DataFolder(tmp_path)
    data.make()
    data.write_state(StackState("ready"))

    assert running_state(data) is None
    with data.held():
        assert running_state(data) is not None
