"""
The API in this process, on a real Postgres, Redis and S3; two tenants, keys of every scope, and a model that a worker reported.

All tests of an xdist worker ask the same application: to wire one takes longer than most tests.
"""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import text
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from infra.embedded.postgres import PostgresServer
from infra.embedded.s3 import S3Server
from services.api.app import create_app
from services.api.parts import Parts
from services.api.settings import ApiSettings
from shared.api_keys import SCOPES, ApiKeyText, new_api_key
from shared.checkpoint import ModelInfo
from shared.cost import Speed
from shared.db import Database
from shared.lifecycle import claims, finish, work
from shared.lifecycle.tenants import ensure_api_key, ensure_tenant
from shared.lifecycle.workers import beat_worker
from shared.progress import LiveState
from shared.sealing import Sealer
from shared.states import Stage
from shared.storage import Storage
from shared.webhooks import new_secret
from tests.fakes import FakeResolver
from tests.integration.api.declared import AnswersDeclared
from tests.integration.conftest import Ledger
from tests.stored import make_storage

MODEL = ModelInfo(
    name="miniature",
    revision="sha256:0123456789abcdef",
    codebook_size=512,
    steps=4,
    guidance_scale=1.5,
    temperature=0.9,
    top_p=0.75,
    default_height_px=128,
    default_width_px=128,
    min_px=32,
    max_px=512,
    source_min_px=64,
    source_max_px=512,
    loras=("neon", "sketch"),
)

AR_SPEED = Speed(seconds_per_unit=0.01, seconds_per_turn=0.02)
DECODER_SPEED = Speed(seconds_per_unit=1e-9, seconds_per_turn=0.1)

TABLES = ("job", "output", "image", "grid", "event", "file", "idempotency_key", "webhook_delivery", "webhook_endpoint")


@dataclass(frozen=True)
class Account:
    """A tenant and its keys by scope."""

    tenant_id: str
    keys: dict[str, str]
    secret: str


@pytest.fixture(scope="session")
def bucket(s3: S3Server) -> str:
    """Name of a bucket."""
    name = f"api-{uuid.uuid4().hex[:12]}"
    make_storage(s3, s3.endpoint, name).ensure_bucket()
    return name


def make_settings(ledger_url: str, redis_url: str, s3: S3Server, bucket: str) -> ApiSettings:
    """Settings of an API on these stores."""
    return ApiSettings(
        database_url=SecretStr(ledger_url),
        redis_url=SecretStr(redis_url),
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=SecretStr(s3.secret_key),
        s3_bucket=bucket,
        secret_key=SecretStr(base64.b64encode(secrets.token_bytes(32)).decode()),
        egress_allow="127.0.0.1/32",
        max_body_bytes=2 << 20,
        source_fetch_s=2,
    )


def make_account(db: Database, settings: ApiSettings, name: str) -> Account:
    """A tenant with a key of each scope."""
    secret = new_secret()
    tenant_id = ensure_tenant(db, name, Sealer(settings.secret_key.get_secret_value()).seal(secret))
    keys = {scope: new_api_key() for scope in SCOPES}
    for scope, key in keys.items():
        parsed = ApiKeyText.parse(key)
        assert parsed is not None
        ensure_api_key(db, tenant_id, scope, parsed, [scope])
    return Account(tenant_id, keys, secret)


def make_app(settings: ApiSettings) -> APIFlask:
    """The application. Its resolver knows a public host, an inside one, and one that is both."""
    names = {"hooks_example": ["93.184.216.34"], "inside_example": ["10.0.0.7"], "both_example": ["93.184.216.34", "10.0.0.7"]}
    return create_app(settings, FakeResolver(**{name: [addresses] for name, addresses in names.items()}))


@contextmanager
def open_app(settings: ApiSettings) -> Iterator[APIFlask]:
    """An application with other settings than most tests want, held against its OpenAPI document."""
    app = make_app(settings)
    answers = AnswersDeclared(app)
    try:
        yield app
        answers.check()
    finally:
        app.extensions["glmq"].close()


def report_model(db: Database) -> None:
    """Say what an AR worker says when it has loaded `MODEL`."""
    beat_worker(db, "worker-1", Stage.AR, "host", 1, 1, asdict(MODEL))


def finish_jobs(db: Database, storage: Storage, tenant_id: str, picture: bytes) -> None:
    """Do the work of every waiting job as the workers would; all results are the same picture."""
    work.release(db, Stage.AR, 100)
    while grid := claims.claim_grid(db, "w", 30):
        finish.finish_grid(db, grid.id, grid.attempt, claims.StoredArtifact(f"t/{grid.id}", "ab" * 32, 100), 16)
    work.release(db, Stage.DECODER, 100)
    while image := claims.claim_image(db, "w", 30):
        key = f"t/{tenant_id}/{image.id}.png"
        storage.put(key, picture, "image/png")
        finish.finish_image(db, image.id, image.attempt, claims.StoredArtifact(key, hashlib.sha256(picture).hexdigest(), len(picture)))


def client_of(app: APIFlask, key: str) -> FlaskClient:
    """A client that sends this key."""
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


def count_rows(db: Database) -> dict[str, int]:
    """How many rows each table has that a request can add to."""
    count = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {table}" for table in TABLES)
    return db.run(lambda session: {row[0]: row[1] for row in session.execute(text(count))})


@pytest.fixture(scope="session")
def empty_api(
    postgres_server: PostgresServer, migrated_template: str, redis_url: str, s3: S3Server, bucket: str
) -> Iterator[tuple[FlaskClient, Database]]:
    """One API for all wrong requests: nothing is ever stored, so nothing needs to be fresh."""
    name = f"empty_{uuid.uuid4().hex}"
    url = postgres_server.create_database(name, template=migrated_template)
    settings = make_settings(url, redis_url, s3, bucket)
    db = Database(url)
    report_model(db)
    with open_app(settings) as app:
        yield client_of(app, make_account(db, settings, "acme").keys["admin"]), db
    db.close()
    postgres_server.drop_database(name)


@pytest.fixture
def refusing(empty_api: tuple[FlaskClient, Database]) -> Iterator[FlaskClient]:
    """A client for wrong requests: after the test there is still no row."""
    client, db = empty_api
    yield client
    assert not any(count_rows(db).values())


@pytest.fixture(scope="session")
def shared_settings(ledger: Ledger, redis_url: str, s3: S3Server, bucket: str) -> ApiSettings:
    """Settings of an API on the ledger; most tests want `settings`."""
    return make_settings(ledger.url, redis_url, s3, bucket)


@pytest.fixture(scope="session")
def shared_app(shared_settings: ApiSettings) -> Iterator[tuple[APIFlask, AnswersDeclared]]:
    """The application that all tests share, and what looks at its answers; most want `app`."""
    app = make_app(shared_settings)
    yield app, AnswersDeclared(app)
    app.extensions["glmq"].close()


@pytest.fixture
def settings(shared_settings: ApiSettings, ledger_url: str) -> ApiSettings:
    """Settings of an API on the ledger, which is empty."""
    return shared_settings


@pytest.fixture
def app(shared_app: tuple[APIFlask, AnswersDeclared], ledger_url: str) -> Iterator[APIFlask]:
    """The application, held against its OpenAPI document. It knows nothing of earlier tests."""
    app, answers = shared_app
    parts: Parts = app.extensions["glmq"]
    for kept in (parts.model, parts.fleet, parts.outlook):
        kept.forget()
    yield app
    answers.check()


@pytest.fixture
def parts(app: APIFlask) -> Parts:
    """What the application is made of."""
    found: Parts = app.extensions["glmq"]
    return found


@pytest.fixture
def account(db: Database, settings: ApiSettings) -> Account:
    return make_account(db, settings, "acme")


@pytest.fixture
def stranger(db: Database, settings: ApiSettings) -> Account:
    """Another tenant."""
    return make_account(db, settings, "other")


@pytest.fixture
def model(db: Database) -> ModelInfo:
    """An AR worker has reported this model."""
    report_model(db)
    return MODEL


@pytest.fixture
def client(app: APIFlask, account: Account, model: ModelInfo) -> FlaskClient:
    """Sends the admin key of `account`."""
    return client_of(app, account.keys["admin"])


@pytest.fixture
def telling_db(ledger_url: str, settings: ApiSettings) -> Iterator[Database]:
    """The ledger as a worker has it: it tells of what it commits."""
    db = Database(ledger_url, on_changes=LiveState(settings.redis_url.get_secret_value()).tell_changes)
    yield db
    db.close()


@pytest.fixture
def workers(db: Database, client: FlaskClient) -> None:
    """One of each stage, which have told how fast they are."""
    beat_worker(db, "worker-1", Stage.AR, "host", 1, 4, asdict(MODEL), AR_SPEED)
    loaded = {"revision": MODEL.revision, "dit": {"num_layers": 2, "width": 64}}
    beat_worker(db, "worker-2", Stage.DECODER, "host", 2, 4, loaded, DECODER_SPEED)


def png(height_px: int = 128, width_px: int = 96, colour: str = "red") -> bytes:
    """A picture."""
    out = io.BytesIO()
    Image.new("RGB", (width_px, height_px), colour).save(out, "PNG")
    return out.getvalue()


def post_multipart(client: FlaskClient, parts: dict[str, Any], path: str = "/v1/jobs") -> Any:
    """POST multipart; a part is text, or the bytes and the name of a file, or a list of such."""

    def encode(value: Any) -> Any:
        return FileStorage(io.BytesIO(value[0]), value[1]) if isinstance(value, tuple) else value

    values = {name: [encode(item) for item in value] if isinstance(value, list) else encode(value) for name, value in parts.items()}
    # As bytes: given files, the test client leaves temporary files open.
    boundary, body = encode_multipart(values)
    return client.post(path, data=body, content_type=f"multipart/form-data; boundary={boundary}")


def assert_problem(answer: Any, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """The answer is this problem, whole and consistent; its body."""
    body = answer.get_json(force=True)
    assert answer.status_code == status, body
    assert answer.mimetype == "application/problem+json"
    assert body["status"] == status
    assert body["code"] == code == body["error"]["code"], body
    assert body["param"] == param == body["error"]["param"], body
    # Refusals for quotas and for overload have types of their own; their tests say which.
    assert body["type"].endswith(("/problems/" + code.replace("_", "-"), "#quota-exceeded", "#temporary-reduced-capacity"))
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert body["instance"].endswith("#" + body["request_id"])
    assert body["detail"] == body["error"]["message"]
    assert isinstance(body["retryable"], bool)
    assert isinstance(body["errors"], list)
    return dict(body)
