"""
The API held against its own OpenAPI document by schemathesis, over HTTP and with real stores: the document's examples, the edges of every
schema, random requests, and chains of requests along its links.

Whatever is sent: no 5xx, no answer that the document does not have, 405 for methods that it does not name, nothing for whoever has no
key, and nothing more of what was deleted.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from shared.db import Database
from shared.lifecycle.deliveries import Outcome, Room, claim_deliveries, finish_deliveries
from shared.progress import LiveState
from shared.storage import Storage
from tests.integration.api.conftest import finish_jobs, make_account, make_settings, png, report_model
from tests.integration.api.test_server import Server
from tests.nursery import Nursery

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
    "use_after_free",
    "ensure_resource_availability",
)
PICTURE = png()
_FUZZ_S = os.environ.get("FUZZ_S", "")
"""Seconds of each phase, as `make fuzz` sets them."""


@pytest.fixture(scope="module")
def running(
    nursery: Nursery,
    postgres_server: PostgresServer,
    migrated_template: str,
    redis_url: str,
    s3: S3Server,
    bucket: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Server, str]]:
    """An API whose jobs are done at once, and a key that may do everything."""
    url = postgres_server.create_database(f"st_{uuid.uuid4().hex}", template=migrated_template)
    settings = make_settings(url, redis_url, s3, bucket)
    # As a worker has it: requests that wait for a job hear of its end at once.
    db = Database(url, on_changes=LiveState(redis_url).tell_changes)
    report_model(db)
    account = make_account(db, settings, "acme")
    server = Server(nursery, settings, tmp_path_factory.mktemp("st") / "log", SYNC_MAX_S="40", STREAM_S="1", API_READ_TIMEOUT_S="20")
    ended = threading.Event()

    def draw() -> None:
        while not ended.wait(0.05):
            finish_jobs(db, Storage(settings), account.tenant_id, PICTURE)
            # Or every test of a webhook endpoint would wait for its answer in vain.
            claimed = claim_deliveries(db, Room(100, 100, 100), 30, lambda delivery: b"{}")
            finish_deliveries(db, [(delivery, Outcome("delivered", status=204)) for delivery in claimed])

    worker = threading.Thread(target=draw)
    worker.start()
    yield server, account.keys["operator"]
    ended.set()
    worker.join()
    # Not asked to stop: what it still holds for the client that has gone would take its time.
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    db.close()


@pytest.mark.parametrize(
    ("phase", "max_examples", "operations"),
    [
        ("examples", 1, ()),
        ("coverage", 1, ("create_tenant", "create_api_key", "list_jobs", "change_batch", "reject_job")),
        ("fuzzing", 6, ("estimate_job", "create_webhook_endpoint", "list_events", "replicate_create_prediction", "openai_upload_file")),
        (
            "stateful",
            3,
            ("submit_job", "get_job", "cancel_job", "delete_job", "list_images", "create_api_key", "revoke_api_key"),
        ),
    ],
)
def test_no_request_breaks_the_document(
    running: tuple[Server, str], tmp_path: Path, phase: str, max_examples: int, operations: tuple[str, ...]
) -> None:
    """
    Schemathesis finds nothing, in any of its phases.

    Of the examples none is left out. The other phases take hours for all operations: here each tries those that are named, and with
    `make fuzz` all of them, for as long as it says.
    """
    server, key = running
    command = [str(Path(sys.executable).parent / "st"), "--no-color", "run", f"{server.url}/openapi.json", "--phases", phase]
    command += ["-H", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS), "--request-timeout", "45", "--continue-on-failure"]
    command += ["--suppress-health-check", "all", "--warnings", "off", "--generation-database", "none"]
    if _FUZZ_S:
        # By and by a key comes back whose answer tells of what was made and is deleted since.
        command += ["--max-time", _FUZZ_S, "--exclude-checks", "ensure_resource_availability"]
    else:
        command += ["--max-examples", str(max_examples), "--seed", "5"]
        command += [part for name in operations for part in ("--include-operation-id", name)]
    if phase == "stateful":
        # A revoked key is still told of, which a deleted resource must not be.
        command += ["--exclude-operation-id", "get_api_key"]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", found.stdout)
    assert tested is not None, found.stdout[-2000:]
    assert _FUZZ_S or int(tested[1]) >= (1 if phase == "stateful" else len(operations) or 45), found.stdout[-2000:]
