"""The decoder worker before its first customer."""

from __future__ import annotations

import pytest

from services.decoder_worker.engine import DecoderEngine
from services.decoder_worker.fast import FastParams
from services.decoder_worker.settings import DecoderWorkerSettings
from services.decoder_worker.weights import DecoderModel
from services.decoder_worker.worker import fast_params, warm_up
from shared.errors import StartupError
from shared.settings import read_settings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What a decoder worker must be told."""
    urls = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused", "S3_ENDPOINT": "http://unused"}
    others = dict.fromkeys(("S3_ACCESS_KEY", "S3_SECRET_KEY", "SECRET_KEY", "CHECKPOINT"), "unused")
    for name, value in (urls | others).items():
        monkeypatch.setenv(f"GLMQ_{name}", value)
    return monkeypatch


def test_the_operator_says_what_fast_pictures_skip(environment: pytest.MonkeyPatch) -> None:
    """Both savings have their switch; what is not set is the engine's own choice."""
    assert fast_params(read_settings(DecoderWorkerSettings)) == FastParams()
    for name, value in (("CACHE_THRESHOLD", "0"), ("GUIDANCE_FROM", "0"), ("GUIDANCE_TO", "1")):
        environment.setenv(f"GLMQ_FAST_{name}", value)
    assert fast_params(read_settings(DecoderWorkerSettings)) == FastParams(threshold=0, guidance_from=0, guidance_to=1)


@pytest.mark.parametrize(("name", "value"), [("CACHE_THRESHOLD", "-0.1"), ("GUIDANCE_TO", "1.5"), ("GUIDANCE_FROM", "0.96")])
def test_an_impossible_lossy_tier_refuses_the_start(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Out of range, or an interval that ends before it begins."""
    environment.setenv(f"GLMQ_FAST_{name}", value)
    with pytest.raises(StartupError, match=f"GLMQ_FAST_{name}"):
        read_settings(DecoderWorkerSettings)


def test_a_warm_engine_knows_how_fast_it_is(engine: DecoderEngine) -> None:
    """Predictions have something to go by from the first beat on."""
    assert engine.speed() is None
    warm_up(engine)
    speed = engine.speed()
    assert speed is not None
    assert 0 < speed.seconds_per_unit < speed.seconds_per_turn


def test_an_engine_that_cannot_draw_ends_the_process(model: DecoderModel) -> None:
    """A worker that could only fail its work takes none."""
    engine = DecoderEngine(model)
    engine.start()
    engine.close()
    with pytest.raises(StartupError):
        warm_up(engine)
