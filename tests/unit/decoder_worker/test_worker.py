"""The decoder worker before its first customer."""

from __future__ import annotations

import pytest

from services.decoder_worker.engine import DecoderEngine
from services.decoder_worker.weights import DecoderModel
from services.decoder_worker.worker import warm_up
from shared.errors import StartupError


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
