"""
What a sender process posts, the public libraries verify: `standardwebhooks` and `svix`, each for Python and for Node, before, during and
after a rotation; and they refuse whatever is changed by one bit.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import svix

from infra.embedded.postgres import PostgresServer
from infra.migrate import migrate_database
from shared.db import Database
from shared.lifecycle.endpoints import NewEndpoint, add_endpoint
from shared.lifecycle.submit import submit
from shared.lifecycle.tenants import ensure_tenant
from shared.lifecycle.webhook_secrets import rotate_default_secret, rotate_endpoint_secret
from shared.sealing import Sealer
from shared.webhooks import new_secret
from tests.fakes import ScriptedServer
from tests.integration.conftest import plain_job
from tests.ledger import execute
from tests.nursery import Nursery
from tests.sender_process import KEY, SenderProcesses

HERE = Path(__file__).parent / "verifiers"
LIBRARIES = ("python standardwebhooks", "python svix", "node standardwebhooks", "node svix")


@dataclass(frozen=True)
class Post:
    """What a receiver got."""

    path: str
    headers: dict[str, str]
    body: str

    def changed(self, name: str) -> Post:
        """The same with one bit of its id, timestamp or body turned."""
        if name == "body":
            return replace(self, body=_turned(self.body))
        return replace(self, headers={**self.headers, name: _turned(self.headers[name])})


def _turned(text: str) -> str:
    return text[:-1] + chr(ord(text[-1]) ^ 1)


class Stage:
    """A ledger with a tenant that has an endpoint and jobs with URLs of their own, a sender process, and a receiver."""

    def __init__(self, db: Database, posts: list[Post], url: str) -> None:
        self.db = db
        self.posts = posts
        self.sealer = Sealer(KEY)
        self.secrets = {"/endpoint": [new_secret()], "/job": [new_secret()]}
        self.tenant_id = ensure_tenant(db, "studio", self.sealer.seal(self.secrets["/job"][0]))
        sealed = self.sealer.seal(self.secrets["/endpoint"][0])
        new = NewEndpoint(url=f"{url}/endpoint", host=url.split("/")[2], events=["job.queued"], secret=sealed, secret_hint="")
        self.endpoint_id = str(add_endpoint(db, self.tenant_id, new)["id"])
        prompt = 'ein Plakat mit „画“ und "É" \u2028 \\ / <&>'
        self._new = replace(plain_job(self.tenant_id), prompt=prompt, webhook={"url": f"{url}/job", "events": ["job.queued"]})

    def rotate(self, overlap_s: float) -> None:
        """Give both their next secret."""
        for kind in self.secrets.values():
            kind.insert(0, new_secret())
        sealed = {path: self.sealer.seal(kind[0]) for path, kind in self.secrets.items()}
        rotate_endpoint_secret(self.db, self.tenant_id, self.endpoint_id, sealed["/endpoint"], "", overlap_s)
        rotate_default_secret(self.db, self.tenant_id, sealed["/job"], overlap_s)

    def post(self) -> list[Post]:
        """What a new job's event brings to both."""
        self.posts.clear()
        submit(self.db, self._new)
        until = time.monotonic() + 15
        while len(self.posts) < 2:
            assert time.monotonic() < until, "the webhooks did not come"
            time.sleep(0.02)
        return sorted(self.posts, key=lambda post: post.path)


@pytest.fixture(scope="session")
def node_verifiers(pytestconfig: pytest.Config) -> Path:
    """A folder with the packages of `verifiers/package-lock.json`, installed once into pytest's cache."""
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("verifiers")
    folder = cache / hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(HERE / name, folder)
            npm = shutil.which("npm")
            assert npm, "npm is needed to install what Node's receivers verify with"
            subprocess.run(
                [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, check=True, capture_output=True, timeout=240
            )
            (folder / "done").touch()
    return folder


@pytest.fixture
def stage(nursery: Nursery, postgres_server: PostgresServer, database_url: str, tmp_path: Path) -> Iterator[Stage]:
    posts: list[Post] = []

    def receive(connection: socket.socket, line: str) -> None:
        head, _, body = server.requests[-1].partition("\r\n\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        received = body.encode()
        while len(received) < int(headers["content-length"]):
            received += connection.recv(65536)
        posts.append(Post(line.split()[1], headers, received.decode()))
        connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    server = ScriptedServer(receive)
    migrate_database(database_url)
    db = Database(database_url, pool_size=2)
    made = Stage(db, posts, server.url)
    with SenderProcesses(nursery, database_url, tmp_path) as senders:
        senders.start(GLMQ_WEBHOOK_POLL_S="0.02")
        yield made
    db.close()
    server.close()


def judge(folder: Path, asked: list[tuple[str, Post]]) -> list[dict[str, bool]]:
    """What each library says of each post under a secret: is it what it says it is?"""
    lines = [json.dumps({"secret": secret, "headers": post.headers, "body": post.body}) for secret, post in asked]
    node = shutil.which("node")
    assert node, "node is needed"
    done = subprocess.run(
        [node, str(HERE / "verify.mjs")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"VERIFIERS": str(folder), "PATH": str(Path(node).parent)},
    )
    told: list[dict[str, bool]] = [json.loads(line) for line in done.stdout.splitlines()]
    return [
        {
            "python standardwebhooks": _accepts(standardwebhooks.Webhook, secret, post),
            "python svix": _accepts(svix.Webhook, secret, post),
            **{f"node {name}": accepted for name, accepted in answers.items()},
        }
        for (secret, post), answers in zip(asked, told, strict=True)
    ]


def _accepts(library: type[Any], secret: str, post: Post) -> bool:
    try:
        # What it gives back differs between the libraries; that it raises nothing is what they have in common.
        library(secret).verify(post.body, post.headers)
    except (standardwebhooks.WebhookVerificationError, svix.WebhookVerificationError):
        return False
    return True


def test_every_library_verifies(stage: Stage, node_verifiers: Path) -> None:
    """Endpoints and jobs' own URLs; with two secrets while they overlap, with the new one alone afterwards."""
    yes, no = dict.fromkeys(LIBRARIES, True), dict.fromkeys(LIBRARIES, False)
    # Before a rotation
    for post in stage.post():
        (secret,) = stage.secrets[post.path]
        assert post.headers["webhook-id"] == json.loads(post.body)["id"]
        changed = [post.changed(name) for name in ("webhook-id", "webhook-timestamp", "body")]
        asked = [(secret, post), (new_secret(), post), *((secret, other) for other in changed)]
        said = judge(node_verifiers, asked)
        assert said == [yes, no, no, no, no], post.path
    # During it
    stage.rotate(3600)
    for post in stage.post():
        assert len(post.headers["webhook-signature"].split()) == 2
        assert judge(node_verifiers, [(secret, post) for secret in stage.secrets[post.path]]) == [yes, yes], post.path
    # And when the old secret has ended
    execute(stage.db, "UPDATE webhook_endpoint SET previous_secret_until = clock_timestamp()")
    execute(stage.db, "UPDATE tenant SET previous_webhook_secret_until = clock_timestamp()")
    for post in stage.post():
        assert judge(node_verifiers, [(secret, post) for secret in stage.secrets[post.path]]) == [yes, no], post.path
    # Rotated without an overlap, at once
    stage.rotate(0)
    for post in stage.post():
        assert judge(node_verifiers, [(secret, post) for secret in stage.secrets[post.path]]) == [yes, no, no], post.path
