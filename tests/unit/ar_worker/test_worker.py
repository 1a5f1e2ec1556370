"""The AR worker before its first customer."""

from __future__ import annotations

import pytest
import torch

from services.ar_worker.engine import ArEngine
from services.ar_worker.weights import ArModel
from services.ar_worker.worker import choose_decode, warm_up
from shared.checkpoint import ModelInfo
from shared.errors import StartupError

INFO = ModelInfo("m", "r", 512, 4, 1.5, 0.9, 0.75, 64, 64, 32, 512, 64, 512)


def test_a_warm_engine_knows_how_fast_it_is(ar_model: ArModel) -> None:
    """Predictions have something to go by from the first beat on."""
    engine = ArEngine(ar_model)
    engine.start()
    assert engine.speed() is None
    warm_up(engine, INFO)
    speed = engine.speed()
    engine.close()
    assert speed is not None
    assert 0 < speed.seconds_per_unit <= speed.seconds_per_turn


def test_an_engine_that_cannot_write_ends_the_process(ar_model: ArModel) -> None:
    """A worker that could only fail its work takes none."""
    engine = ArEngine(ar_model)
    engine.start()
    engine.close()
    with pytest.raises(StartupError):
        warm_up(engine, INFO)


def test_graphs_of_another_device_refuse_the_start() -> None:
    """The line names the variable; every other way to decode is for any device."""
    with pytest.raises(StartupError, match="GLMQ_AR_DECODE=cuda_graphs is for cuda devices; this worker runs on cpu"):
        choose_decode("cuda_graphs", torch.device("cpu"), torch.float32)
    assert choose_decode("cuda_graphs", torch.device("cuda"), torch.float32) == "cuda_graphs"
    assert choose_decode("static", torch.device("cpu"), torch.float32) == "static"


@pytest.mark.parametrize(
    ("device", "dtype", "mode"),
    [
        ("cpu", torch.float32, "off"),
        ("cpu", torch.bfloat16, "static"),
        ("cuda", torch.bfloat16, "cuda_graphs"),
        ("cuda", torch.float32, "cuda_graphs"),
    ],
)
def test_the_default_is_exact_on_every_device(device: str, dtype: torch.dtype, mode: str) -> None:
    """In bfloat16 every step has the same shapes, whoever is there."""
    assert choose_decode("auto", torch.device(device), dtype) == mode
