"""
The process that is a stack: `python -m cli.stack DATA CHECKPOINT PORT`. Puts the supervisor together and runs it; `up` and `demo` start it.

CHECKPOINT is empty for the random miniature, PORT is 0 for any.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cli.checkpoint import random_miniature
from cli.data_folder import DataFolder, StackState, default_data_folder
from cli.environment import exports, is_folder, role_environment, without_own
from cli.leftovers import MARK, end_leftovers, stack_mark
from cli.roles import MIGRATE, Role, stack_roles
from cli.supervisor import StackError, Supervisor
from cli.worker_counts import worker_counts
from infra.embedded.choose import choose_servers
from infra.embedded.memory import Memory
from infra.embedded.ports import free_port, is_free
from infra.embedded.process import ProcessMark
from infra.embedded.server import EmbeddedServer, ServerError

EXIT_FAILED = 1
EXIT_HELD = 75
"""Another supervisor holds the data folder. Source: EX_TEMPFAIL of sysexits.h."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_API_PORT = 8080
_READY_TIMEOUT_S = 180.0
_DOWNLOAD_TIMEOUT_S = 6 * 3600.0
"""A hub checkpoint of 36 GB over a slow line."""


class StopFlag:
    """Turns true at the first stop signal and stays so."""

    def __init__(self) -> None:
        self._raised = False

    def install(self) -> StopFlag:
        for number in STOP_SIGNALS:
            signal.signal(number, self._raise)
        return self

    def __call__(self) -> bool:
        return self._raised

    def _raise(self, number: int, frame: object) -> None:
        self._raised = True


def main(arguments: Sequence[str], roles: Callable[[int], Sequence[Role]] | None = None, migrate: Sequence[str] = MIGRATE) -> int:
    """
    Run the stack of one data folder until a stop signal.

    Args:
        roles: the processes to run, given the API's port; None for those of glmq.
        migrate: runs once before them.
    """
    folder, checkpoint, port = arguments
    should_stop = StopFlag().install()
    data = DataFolder(Path(folder))
    with data.held() as ours:
        if not ours:
            return EXIT_HELD
        before = data.read_state()
        end_leftovers(data)
        data.rotate_logs()
        try:
            _supervisor(data, checkpoint, int(port), without_own(os.environ, before), should_stop, roles, migrate).run()
        except (StackError, ServerError) as error:
            print(error, file=sys.stderr)
            return EXIT_FAILED
    return 0


def _supervisor(
    data: DataFolder,
    checkpoint: str,
    port: int,
    environ: dict[str, str],
    should_stop: StopFlag,
    roles: Callable[[int], Sequence[Role]] | None,
    migrate: Sequence[str],
) -> Supervisor:
    memory = data.memory()
    servers = choose_servers(data.path, data.logs, memory, environ)
    api_port = port or _usual_port(data, memory)
    memory.note("api", port=api_port)
    prepare: list[tuple[str, Sequence[str]]] = [("migrate", migrate)]
    if not checkpoint:
        folder = random_miniature(data)
        checkpoint = str(folder)
        # It appears whole or not at all. Asking the builder would take seconds: it imports torch.
        if not folder.exists():
            prepare.insert(0, ("miniature", (sys.executable, "-m", "checkpoints.random_miniature", checkpoint)))

    def environment() -> dict[str, str]:
        settings = role_environment(servers, memory, checkpoint, api_port, environ) | {MARK: stack_mark(memory)}
        state.exports = exports(settings)
        state.own_settings = [name for server in servers if isinstance(server, EmbeddedServer) for name in server.env()]
        return settings

    mark = ProcessMark.of(os.getpid())
    counts = worker_counts(checkpoint, environ)
    state = StackState(
        phase="starting",
        pid=os.getpid(),
        birth=mark.birth if mark else "",
        url=f"http://127.0.0.1:{api_port}",
        checkpoint=checkpoint,
        egress_allow=environ.get("GLMQ_EGRESS_ALLOW", ""),
    )
    return Supervisor(
        data=data,
        servers=servers,
        environment=environment,
        prepare=prepare,
        roles=stack_roles(api_port, counts.ar, counts.decoder) if roles is None else roles(api_port),
        should_stop=should_stop,
        state=state,
        ready_timeout_s=_READY_TIMEOUT_S if is_folder(checkpoint) else _DOWNLOAD_TIMEOUT_S,
    )


def _usual_port(data: DataFolder, memory: Memory) -> int:
    """The port of the last run; at first 8080 for the checkout's own stack, and any other for others, which may start at the same time."""
    usual = _API_PORT if data.path == default_data_folder({}) else None
    for port in (memory.peek("api", "port"), usual):
        if isinstance(port, int) and is_free(port):
            return port
    return free_port()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
