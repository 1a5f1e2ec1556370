"""The benchmarks can still be run: all of them are imported, and those that need no stack measure something tiny."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infra import bench
from infra.bench import ar, decoder, fairness, gpu, published_nets
from infra.bench.__main__ import BY_NAME_ALONE, NAMES, main
from infra.bench.bare_decoder import BareLoop, check_equal, make_request
from infra.bench.figures import Figure, each_alone
from services.ar_worker.engine import ArEngine, GridRequest
from services.ar_worker.weights import load_ar_model
from services.decoder_worker.engine import DecoderEngine
from services.decoder_worker.weights import load_decoder_model


def test_every_module_can_be_imported() -> None:
    """What moved or was renamed elsewhere was so here too; every benchmark that `make bench` names has its `measure`."""
    modules = {module.name: importlib.import_module(f"infra.bench.{module.name}") for module in pkgutil.iter_modules(bench.__path__)}

    assert {*NAMES, *BY_NAME_ALONE} == {name for name, module in modules.items() if hasattr(module, "measure")}
    assert ar.MINIATURE.is_dir()
    assert decoder.CHECKPOINT.is_dir()


def test_the_ar_engine_is_measured_against_its_products(miniature: Path) -> None:
    """One slot, once: a figure comes out, and its ids were the reference's."""
    figure = ar.measure_against_products(load_ar_model(miniature, "cpu", "float32"), repeats=1, slots=1)

    assert 0 < figure.median < 1


def test_a_load_with_other_ids_than_the_reference_s_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are known are compared, the last that joined of each size among them."""
    requests = ar.mixed_requests(9)
    monkeypatch.setattr(ar, "generate", lambda *_: [[1]])
    known = ar.Known(None, ar.last_of_each_size(requests))

    assert {request.grid for request in known.ids} == {request.grid for request in requests}
    assert requests[-1] in known.ids
    known.check(requests[-1], [[1]])
    known.check(next(request for request in requests if request not in known.ids), [[2]])
    with pytest.raises(AssertionError, match="not the reference's"):
        known.check(requests[-1], [[2]])


def test_the_decoder_engine_draws_what_the_bare_loop_does(miniature: Path) -> None:
    """The loop that the engine is measured against, and the comparison before a figure counts."""
    model = load_decoder_model(miniature, "cpu", "float32")
    engine = DecoderEngine(model)
    request = make_request(64, seed=1, steps=2)
    future = engine.submit(request, lambda *_: None, lambda: False)
    while not future.done():
        engine.turn()
    pixels = future.result().pixels

    assert check_equal([pixels], BareLoop(model).draw([request])) <= 1e-4
    with pytest.raises(AssertionError, match="pixels differ"):
        check_equal([pixels], [pixels + 1e-3])


def test_what_runs_on_a_gpu_runs() -> None:
    """On a CPU with narrow nets: all is equal, and every figure comes out. Without a GPU the benchmark itself says what it lacks."""
    device = torch.device("cpu")
    figures = [
        *gpu.of_ar(published_nets.NARROW, device, slots=1, name="a CPU", mode="static", dtype=torch.float32),
        *gpu.of_decoder(published_nets.NARROW, device, sides=(64,), name="a CPU"),
    ]

    assert all(figure.median > 0 for figure in figures if "prompt" not in figure.name)
    assert "1 grids equal" in figures[0].note
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="needs a GPU"):
            list(gpu.measure())


def test_a_grid_that_depends_on_who_went_on_with_it_is_found(miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a GPU's kernels sees where a successor goes on from other ids."""
    engine = ArEngine(load_ar_model(miniature, "cpu", "float32"), 3, 1024, show_every=100)
    requests = ar.mixed_requests(1)
    assert gpu.check_neighbours(engine, requests) == 1
    monkeypatch.setattr(GridRequest, "usable_written", lambda self, _: tuple(reversed(self.written)))

    with pytest.raises(AssertionError, match="depends on its neighbours"):
        gpu.check_neighbours(engine, requests)


def test_short_jobs_are_in_the_system_for_less_time() -> None:
    """The simulation over the real policies gets by with a short trace."""
    mean, by_release, largest, single = fairness.simulated(num_traces=1, num_pictures=300)

    assert 0.3 < mean.median < by_release.median < 1
    assert largest.median < 2
    assert single.median < 60


def test_a_benchmark_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """
    Each figure is told when it is measured, the machine before all; the table shows those there are, what was missed and by how much, and
    the exit code tells; an unknown name runs nothing.
    """
    told_before: list[str] = []

    def fail() -> list[Figure]:
        raise RuntimeError("no stack")

    def measure() -> Iterator[Figure]:
        yield from each_alone((fail, lambda: [Figure("warmth", [1.0])]))

    def measure_later() -> list[Figure]:
        told_before.append(capsys.readouterr().out)
        return [Figure("speed", [2.0, 3.0, 4.0], target=5)]

    monkeypatch.setattr(decoder, "measure", measure)
    monkeypatch.setattr(ar, "measure", measure_later)

    assert main(["decoder", "ar"]) == 1
    after = capsys.readouterr()
    first, *_ = told_before[0].splitlines()
    assert "cores, load" in first
    assert "warmth: 1" in told_before[0]
    assert "decoder was not measured, or not whole" in told_before[0]
    assert "speed: 3 x, 2 - 4 (n=3), asked ≥ 5: MISSED" in after.out
    assert after.out.index("glmq benchmarks") < after.out.rindex("warmth") < after.out.rindex("MISSED") < after.out.rindex("took")
    assert "not measured: decoder" in after.err
    assert main(["none"]) == 2
