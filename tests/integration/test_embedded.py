"""Real servers, really started: who may talk to them, and what of their data outlives what."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import redis
from botocore.config import Config

from infra.embedded.find import Program, postgres_programs, redis_program, weed_program
from infra.embedded.memory import Memory
from infra.embedded.ports import COMPANION, LOOPBACK
from infra.embedded.postgres import PostgresServer
from infra.embedded.process import ProcessMark
from infra.embedded.redis import RedisServer
from infra.embedded.s3 import S3Server
from infra.embedded.server import CalledOffError, EmbeddedServer

LISTENING = "0A"
"""State of a listening socket in /proc/net/tcp."""


@dataclass(frozen=True)
class Kind:
    """One kind of server, and how to write and read one value in it."""

    make: Callable[[Path], EmbeddedServer]
    write: Callable[[Any, str], None]
    read: Callable[[Any], str]
    """Raises when the value, or the server, is not there."""


def make_postgres(folder: Path, programs: list[Program] | None = None) -> PostgresServer:
    return PostgresServer(folder / "postgres", Memory(folder / "memory.json"), folder / "postgres.log", programs or postgres_programs())


def write_postgres(server: PostgresServer, value: str) -> None:
    with psycopg.connect(server.url()) as connection:
        connection.execute("create table if not exists note (value text)")
        connection.execute("insert into note values (%s)", [value])


def read_postgres(server: PostgresServer) -> str:
    with psycopg.connect(server.url()) as connection:
        row = connection.execute("select value from note").fetchone()
        assert row is not None
        return str(row[0])


def make_redis(folder: Path, program: Program | None = None) -> RedisServer:
    return RedisServer(folder / "redis", Memory(folder / "memory.json"), folder / "redis.log", program or redis_program())


def write_redis(server: RedisServer, value: str) -> None:
    with redis.Redis.from_url(server.url(), decode_responses=True) as client:
        client.set("note", value)
        # What is not yet on disk may be lost by a crash; this waits for it.
        client.bgrewriteaof()
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.02)


def read_redis(server: RedisServer) -> str:
    with redis.Redis.from_url(server.url(), decode_responses=True) as client:
        return str(client.get("note"))


def make_s3(folder: Path) -> S3Server:
    return S3Server(folder / "s3", Memory(folder / "memory.json"), folder / "s3.log", weed_program())


def s3_client(server: S3Server, secret_key: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=secret_key or server.secret_key,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}),
    )


def write_s3(server: S3Server, value: str) -> None:
    s3_client(server).create_bucket(Bucket="notes")
    s3_client(server).put_object(Bucket="notes", Key="note", Body=value.encode())


def read_s3(server: S3Server) -> str:
    return str(s3_client(server).get_object(Bucket="notes", Key="note")["Body"].read().decode())


KINDS = {
    "postgres": Kind(make_postgres, write_postgres, read_postgres),
    "redis": Kind(make_redis, write_redis, read_redis),
    "s3": Kind(make_s3, write_s3, read_s3),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def running(kind: Kind, tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = kind.make(tmp_path)
    server.start()
    yield server
    server.stop()


def test_listens_on_loopback_only(running: EmbeddedServer) -> None:
    """Nothing that a server listens on can be reached from another machine."""
    assert running.process is not None
    sockets = {str(entry.readlink()) for entry in Path(f"/proc/{running.process.pid}/fd").iterdir()}

    places = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                places.append(fields[1])

    assert running.port in {int(place.split(":")[1], 16) for place in places}
    assert {place.split(":")[0] for place in places} == {"0100007F"}


def test_data_survives_a_restart(kind: Kind, running: EmbeddedServer, tmp_path: Path) -> None:
    """A new run finds the data of the last, at the same address and with the same credentials."""
    kind.write(running, "kept")
    before = running.env()
    running.stop()

    again = kind.make(tmp_path)
    again.start()
    try:
        assert again.env() == before
        assert kind.read(again) == "kept"
    finally:
        again.stop()


def test_data_survives_kill_9(kind: Kind, running: EmbeddedServer, tmp_path: Path) -> None:
    """A server that was killed in the middle starts again with its data."""
    kind.write(running, "kept")
    assert running.process is not None
    os.kill(running.process.pid, signal.SIGKILL)

    while not running.has_exited():
        time.sleep(0.02)
    running.start()

    assert kind.read(running) == "kept"


def test_a_server_left_behind_is_ended_first(kind: Kind, running: EmbeddedServer, tmp_path: Path) -> None:
    """A server that an earlier run could not stop does not stay beside the new one, nor keep it from starting."""
    kind.write(running, "kept")
    left = running.process
    assert left is not None

    again = kind.make(tmp_path)
    again.start()
    try:
        assert running.has_exited()
        assert again.process != left
        assert kind.read(again) == "kept"
    finally:
        again.stop()


def test_a_taken_port_is_replaced(kind: Kind, running: EmbeddedServer, tmp_path: Path) -> None:
    """When somebody has taken a port meanwhile, the server moves, and its data with it."""
    kind.write(running, "kept")
    running.stop()
    thief = subprocess.Popen([sys.executable, "-m", "http.server", "--bind", LOOPBACK, str(running.port)], stderr=subprocess.DEVNULL)
    old_port = running.port
    while not answers(old_port):
        time.sleep(0.05)

    try:
        again = kind.make(tmp_path)
        again.start()
        try:
            assert again.port != old_port
            assert kind.read(again) == "kept"
        finally:
            again.stop()
    finally:
        thief.kill()
        thief.wait()


def test_a_start_can_be_called_off(kind: Kind, tmp_path: Path) -> None:
    """Calling a start off leaves no process behind."""
    server = kind.make(tmp_path)

    with pytest.raises(CalledOffError):
        server.start(should_stop=lambda: True)

    assert server.process is None
    assert not any(str(tmp_path) in line for line in command_lines())


def test_postgres_refuses_a_wrong_password(postgres_server: PostgresServer) -> None:
    """Knowing the port is not enough to read the ledger."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.url(), password="guessed")


def test_redis_refuses_strangers(redis_url: str) -> None:
    """Without the password Redis answers nothing."""
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_s3_refuses_strangers(s3: S3Server) -> None:
    """Without the keys there is no way in: not by S3, and not by the servers behind it."""
    with pytest.raises(Exception, match="SignatureDoesNotMatch"):
        s3_client(s3, secret_key="x").create_bucket(Bucket="stolen")
    assert status(s3.port, "PUT", "/stolen") == 403
    assert status(s3.ports["filer_port"], "GET", "/buckets/") == 401
    assert status(s3.ports["filer_port"], "PUT", "/buckets/stolen/x") == 401
    assert status(s3.ports["volume_port"], "PUT", "/1,01637037d6") == 401


def test_s3_keeps_its_companion_ports(s3: S3Server) -> None:
    """Each part of S3 answers beside its port too, so the ports were chosen in pairs."""
    assert all(answers(port + COMPANION) for port in s3.ports.values())


def test_an_ordinary_user_can_run_all(tmp_path: Path) -> None:
    """An ordinary user starts, uses and stops the same servers."""
    script = (
        "import os, sys; from pathlib import Path\n"
        "from infra.embedded.choose import choose_servers; from infra.embedded.memory import Memory\n"
        "assert os.geteuid() != 0; folder = Path(sys.argv[1])\n"
        "for server in choose_servers(folder, folder, Memory(folder / 'memory.json'), {'PATH': os.environ['PATH']}):\n"
        "    server.start(); assert server.healthy(); server.stop()\n"
    )
    # A user namespace makes root an ordinary user for this command.
    drop = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    subprocess.run([*drop, sys.executable, "-c", script, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])


def test_ends_when_its_starter_is_killed(kind: Kind, tmp_path: Path) -> None:
    """kill -9 of the process that started a server ends the server."""
    script = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from tests.integration import test_embedded as t\n"
        f"server = next(k for k in t.KINDS.values() if k.make.__name__ == {kind.make.__name__!r}).make(Path(sys.argv[1])); server.start()\n"
        "print(server.process.pid, flush=True); time.sleep(60)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parents[2])], stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    mark = ProcessMark.of(int(starter.stdout.readline()))
    assert mark is not None

    starter.kill()
    starter.wait()
    starter.stdout.close()

    deadline = time.monotonic() + 20
    while mark.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not mark.is_alive()


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def status(port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request(method, path, body=b"x" if method == "PUT" else None)
        return connection.getresponse().status
    finally:
        connection.close()


def command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return lines
