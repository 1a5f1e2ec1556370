"""S3 and Redis through our own doors, up and down."""

from __future__ import annotations

import time
import uuid

import httpx
import pytest
import redis
from pydantic import SecretStr

from infra.embedded.ports import free_port
from infra.embedded.s3 import S3Server
from shared.progress import MAX_CHECKPOINT_BYTES, LiveState
from shared.settings import CoreSettings
from shared.storage import Storage, StorageDownError, StorageMissingError


def storage_at(endpoint: str, access_key: str, secret_key: str) -> Storage:
    """A bucket of its own."""
    return Storage(
        CoreSettings(
            database_url=SecretStr("postgresql://nobody"),
            redis_url=SecretStr("redis://nobody"),
            s3_endpoint=endpoint,
            s3_access_key=access_key,
            s3_secret_key=SecretStr(secret_key),
            s3_bucket=f"b-{uuid.uuid4().hex}",
            secret_key=SecretStr("x"),
        )
    )


@pytest.fixture
def storage(s3: S3Server) -> Storage:
    """A fresh bucket."""
    fresh = storage_at(s3.endpoint, s3.access_key, s3.secret_key)
    fresh.ensure_bucket()
    fresh.ensure_bucket()
    return fresh


def test_put_get_and_presign(storage: Storage) -> None:
    """An object comes back, and a presigned URL shows or saves it without credentials."""
    storage.put("t/a.png", b"bytes", "image/png")
    assert storage.get("t/a.png") == b"bytes"
    shown = httpx.get(storage.presign("t/a.png"))
    assert (shown.content, shown.headers["content-type"]) == (b"bytes", "image/png")
    saved = httpx.get(storage.presign("t/a.png", download_name="cat.png"))
    assert "cat.png" in saved.headers["content-disposition"]
    assert httpx.get(storage.presign("t/a.png").split("?")[0]).status_code == 403
    assert storage.is_up()


def test_missing_and_down_are_told_apart(storage: Storage, s3: S3Server) -> None:
    """A missing object is for good, a store that is away or refuses us may come back."""
    with pytest.raises(StorageMissingError):
        storage.get("none")
    for away in (storage_at(f"http://127.0.0.1:{free_port()}", "k", "s"), storage_at(s3.endpoint, "wrong", "wrong")):
        with pytest.raises(StorageDownError):
            away.put("k", b"", "image/png")
        assert not away.is_up()


def test_live_state_round_trip(redis_url: str) -> None:
    """Progress, stop flags and hot grids are read as they were written."""
    live = LiveState(redis_url)
    key = uuid.uuid4().hex
    live.write_progress({key: ("denoise", 1, 2)})
    live.flag_stop([key])
    live.put_grid(key, b"grid")
    assert live.read_progress([key, "none"]) == {key: ("denoise", 1, 2)}
    assert live.read_stops([key, "none"]) == {key}
    assert (live.get_grid(key), live.get_grid("none")) == (b"grid", None)
    assert live.is_up()


def test_progress_is_told_in_turns(redis_url: str) -> None:
    """Of several senders one has the turn, for half a second; words that were told last are not told again."""
    senders = [LiveState(redis_url), LiveState(redis_url)]
    first, second = (uuid.uuid4().hex for _ in range(2))
    words = {first: "1/9", second: "1/9"}
    assert senders[0].untold(words) == {first, second}
    assert senders[0].take_turns({first: "1/9"}) == {first}
    assert senders[1].untold(words) == {second}
    assert senders[1].take_turns(words) == {second}
    assert senders[0].take_turns({first: "2/9"}) == set()
    time.sleep(0.25)
    senders[0].lengthen_turn(first)
    time.sleep(0.3)
    assert senders[1].untold({first: "2/9", second: "2/9"}) == {second}
    time.sleep(0.25)
    assert senders[1].untold({first: "2/9", second: "1/9"}) == {first}
    away = LiveState(f"redis://127.0.0.1:{free_port()}/0")
    assert (away.untold(words), away.take_turns(words), away.untold({}), away.take_turns({})) == (set(), set(), set(), set())


def test_checkpoints_are_kept_and_dropped(redis_url: str) -> None:
    """A checkpoint is read back byte by byte, the newest one counts, and a dropped one is gone; it ends by itself."""
    live = LiveState(redis_url)
    key = uuid.uuid4().hex
    live.put_checkpoint(key, b"old")
    live.put_checkpoint(key, bytes(range(256)) * 100)
    assert live.get_checkpoint(key) == bytes(range(256)) * 100
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.ttl(f"glmq:checkpoint:{key}") <= 3600
    live.drop_checkpoint(key)
    assert live.get_checkpoint(key) is None


def test_an_oversized_checkpoint_is_not_kept(redis_url: str) -> None:
    """What would fill Redis is left out, and the earlier checkpoint stays."""
    live = LiveState(redis_url)
    key = uuid.uuid4().hex
    live.put_checkpoint(key, b"early")
    live.put_checkpoint(key, bytes(MAX_CHECKPOINT_BYTES + 1))
    assert live.get_checkpoint(key) == b"early"


def test_live_state_without_redis_answers_nothing_fast() -> None:
    """A dead Redis costs no caller more than a moment, and raises nothing."""
    live = LiveState(f"redis://127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    for _ in range(50):
        live.write_progress({"a": ("grid", 1, 2)})
        live.flag_stop(["a"])
        live.put_grid("a", b"")
        live.put_checkpoint("a", b"")
        live.drop_checkpoint("a")
        assert live.get_checkpoint("a") is None
        assert (live.read_progress(["a"]), live.read_stops(["a"]), live.get_grid("a"), live.is_up()) == ({}, set(), None, False)
    assert time.monotonic() - started < 20
