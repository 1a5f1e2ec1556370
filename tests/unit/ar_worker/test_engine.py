"""The engine serves, survives and closes. That its tokens are right is proved beside the reference, in integration."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from checkpoints import random_miniature
from services.ar_worker.engine import ArEngine, GridRequest, GridResult, WrittenTokens
from services.ar_worker.prompt import ArPrompt, build_prompt
from services.ar_worker.race import Race
from services.ar_worker.settings import CompileMode
from services.ar_worker.weights import ArModel, load_ar_model
from shared.errors import PermanentWorkError, TransientWorkError, WorkStoppedError
from shared.grid import TokenGrid
from shared.lora import LoraChoice
from tests.fake_adapters import AdaptedModel

# Image-to-image writes no draft, so this is four tokens.
QUICK = GridRequest("A cat", TokenGrid(2, 2), seed=1, temperature=0.9, top_p=0.75, sources=(Image.new("RGB", (64, 64), (9, 99, 200)),))


@pytest.fixture
def engine(ar_model: ArModel) -> Iterator[ArEngine]:
    engine = ArEngine(ar_model)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture
def adapted(ar_model: ArModel) -> Iterator[AdaptedModel]:
    """The model with crude adapters, bare again afterwards."""
    model = AdaptedModel.of(ar_model)
    yield model
    model.use_lora(())


def ignore(phase: str, done: int, total: int) -> None:
    """A progress callback for tests that look elsewhere."""


def never() -> bool:
    return False


def test_a_bad_request_fails_alone(engine: ArEngine) -> None:
    """Between two good requests, one that cannot be served gets its own error."""
    requests = [QUICK, GridRequest("<sop>", QUICK.grid, 1, 0.9, 0.75), GridRequest("A cat", QUICK.grid, 1, -1.0, 0.75), QUICK]
    first, bad_prompt, bad_temperature, last = (engine.submit(request, ignore, never) for request in requests)

    assert first.result(timeout=60) == last.result(timeout=60)
    assert isinstance(bad_prompt.exception(), PermanentWorkError)
    assert isinstance(bad_temperature.exception(), PermanentWorkError)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError()])
def test_out_of_memory_may_be_tried_again(engine: ArEngine, error: Exception) -> None:
    """Whatever runs out of memory inside a request, the request is told to come back and the engine goes on."""

    def fail(phase: str, done: int, total: int) -> None:
        raise error

    with pytest.raises(TransientWorkError) as caught:
        engine.submit(QUICK, fail, never).result(timeout=60)

    assert caught.value.code == "ar_oom"
    assert len(engine.submit(QUICK, ignore, never).result(timeout=60).token_ids) == 2


def test_a_callback_that_fails_fails_only_its_request(engine: ArEngine) -> None:
    """The error arrives at the one who made it."""

    def fail(phase: str, done: int, total: int) -> None:
        raise KeyError("progress")

    with pytest.raises(KeyError):
        engine.submit(QUICK, fail, never).result(timeout=60)

    assert engine.submit(QUICK, ignore, never).result(timeout=60).token_ids


def test_work_that_is_stopped_before_it_starts_runs_nothing(engine: ArEngine) -> None:
    """A cancel that came while the request waited costs no token."""
    seen: list[int] = []
    future = engine.submit(QUICK, lambda phase, done, total: seen.append(done), lambda: True)

    with pytest.raises(WorkStoppedError):
        future.result(timeout=60)
    assert seen == []


def test_a_cancelled_future_is_skipped(engine: ArEngine) -> None:
    """The one behind it is served."""
    in_first, go_on = threading.Event(), threading.Event()

    def hold(phase: str, done: int, total: int) -> None:
        in_first.set()
        go_on.wait(60)

    first = engine.submit(QUICK, hold, never)
    in_first.wait(60)
    second, third = engine.submit(QUICK, ignore, never), engine.submit(QUICK, ignore, never)

    assert second.cancel()
    go_on.set()

    assert third.result(timeout=60) == first.result(timeout=60)
    assert second.cancelled()


def test_closing_stops_the_running_and_the_waiting(ar_model: ArModel) -> None:
    """No future is left hanging, the thread ends, and later requests are turned away."""
    # One slot, so that the second waits however long the closing takes.
    engine = ArEngine(ar_model, slots=1)
    engine.start()
    started = threading.Event()
    long_request = GridRequest("A cat", TokenGrid(16, 16), 1, 0.9, 0.75)
    running = engine.submit(long_request, lambda *_: started.set(), never)
    waiting = engine.submit(QUICK, ignore, never)
    started.wait(60)

    engine.close()

    late = engine.submit(QUICK, ignore, never)
    wait([running, waiting, late], timeout=60)
    assert all(isinstance(future.exception(timeout=0), WorkStoppedError) for future in (running, waiting, late))
    assert not any(thread.name == "ar-engine" and thread.is_alive() for thread in threading.enumerate())


def test_an_engine_that_never_started_can_be_closed(ar_model: ArModel) -> None:
    """A worker whose start failed half-way still shuts down cleanly."""
    ArEngine(ar_model).close()


def hold_engine(engine: ArEngine) -> threading.Event:
    """Have the engine wait within a request, so that what is submitted next is taken up together; set the event to go on."""
    in_first, go_on = threading.Event(), threading.Event()

    def hold(phase: str, done: int, total: int) -> None:
        in_first.set()
        go_on.wait(60)

    engine.submit(replace(QUICK, prompt="Hold"), hold, never)
    in_first.wait(60)
    return go_on


def submit_together(engine: ArEngine, requests: list[GridRequest]) -> list[GridResult]:
    go_on = hold_engine(engine)
    futures = [engine.submit(request, ignore, never) for request in requests]
    go_on.set()
    return [future.result(timeout=60) for future in futures]


def test_requests_that_differ_in_sampling_share_their_prompt(engine: ArEngine) -> None:
    """Eight seeds of one prompt are read once, also by those that come while another writes; another prompt is read anew."""
    long_request = GridRequest("A cat", TokenGrid(2, 2), 0, 0.9, 0.75)
    alone = [engine.submit(replace(long_request, seed=seed), ignore, never).result(timeout=60) for seed in range(3)]
    before = engine.num_prefills
    late: list[Any] = []

    def submit_late(phase: str, done: int, total: int) -> None:
        if phase == "draft" and done == 100:
            late.append(engine.submit(replace(long_request, seed=2), ignore, never))

    first = engine.submit(long_request, submit_late, never)
    second = engine.submit(replace(long_request, seed=1, temperature=0.9), ignore, never)

    assert [first.result(timeout=60), second.result(timeout=60), late[0].result(timeout=60)] == alone
    assert engine.num_prefills == before + 1
    assert submit_together(engine, [QUICK, replace(QUICK, prompt="A dog")]) == submit_together(
        engine, [QUICK, replace(QUICK, prompt="A dog")]
    )
    assert engine.num_prefills == before + 1 + 2 * 3


def test_prompts_are_read_on_the_thread_that_submits(engine: ArEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread neither tokenises nor touches a pixel, so no slot waits; one reading does for all that are on their way."""
    readers: list[str] = []
    read = build_prompt

    def note_thread(*arguments: Any) -> ArPrompt:
        readers.append(threading.current_thread().name)
        return read(*arguments)

    monkeypatch.setattr("services.ar_worker.engine.build_prompt", note_thread)
    go_on = hold_engine(engine)
    futures = [engine.submit(replace(QUICK, seed=seed), ignore, never) for seed in range(3)]
    go_on.set()
    wait(futures, timeout=60)

    assert readers == ["MainThread"] * 2


def test_a_shared_prompt_is_measured_for_each_request(ar_model: ArModel) -> None:
    """A draft may fit into a slot where the whole grid of the same prompt does not."""
    engine = ArEngine(ar_model, slots=2, cache_tokens=320)
    engine.start()
    whole = GridRequest("A cat", TokenGrid(16, 16), 5, 0.9, 0.75)
    go_on = hold_engine(engine)
    draft = engine.submit(replace(whole, draft_only=True), ignore, never)
    too_long = engine.submit(whole, ignore, never)
    go_on.set()

    assert isinstance(too_long.exception(timeout=60), PermanentWorkError)
    assert draft.result(timeout=60).token_ids == []
    engine.close()


def test_a_draft_alone_ends_with_the_draft(engine: ArEngine) -> None:
    """`draft_only` gives no grid but shows the draft, which is that of the whole request; going on from it ends with the same grid."""
    whole = GridRequest("A cat", TokenGrid(2, 2), 5, 0.9, 0.75)
    shown: list[WrittenTokens] = []
    seen: list[tuple[str, int, int]] = []

    draft = engine.submit(replace(whole, draft_only=True), lambda *step: seen.append(step), never, shown.append).result(timeout=60)

    assert draft == GridResult([], (), 0)
    assert draft.num_prompt_tokens > 0
    assert seen == [("draft", i + 1, whole.num_draft) for i in range(whole.num_draft)]
    # Twice at once when the interval ends with the draft: a 2x2 grid's has 256 ids.
    assert [len(told.token_ids) for told in shown] == [whole.num_draft]
    go_on = replace(whole, written=shown[-1].token_ids)
    assert engine.submit(go_on, ignore, never).result(timeout=60) == engine.submit(whole, ignore, never).result(timeout=60)
    assert engine.submit(replace(go_on, draft_only=True), ignore, never).result(timeout=60) == draft


def test_only_text_to_image_has_a_draft(engine: ArEngine) -> None:
    """`draft_only` with sources is refused, by name."""
    with pytest.raises(PermanentWorkError, match="draft_only"):
        engine.submit(replace(QUICK, draft_only=True), ignore, never).result(timeout=60)


@pytest.mark.parametrize("written", [(256,), (-1,), (0,) * 5])
def test_ids_that_no_attempt_wrote_are_ignored(engine: ArEngine, written: tuple[int, ...]) -> None:
    """Ids outside the codebook, or more than the grid has: the grid is written from its beginning."""
    assert engine.submit(replace(QUICK, written=written), ignore, never).result(timeout=60) == engine.submit(QUICK, ignore, never).result(
        timeout=60
    )


def test_what_is_written_is_shown_in_steps(ar_model: ArModel) -> None:
    """Every `show_every` ids, and exactly when the draft is complete."""
    engine = ArEngine(ar_model, show_every=100)
    engine.start()
    wide = GridRequest("A cat", TokenGrid(4, 12), 5, 0.9, 0.75)
    shown: list[WrittenTokens] = []

    engine.submit(wide, ignore, never, shown.append).result(timeout=60)
    engine.close()

    assert [len(told.token_ids) for told in shown] == sorted(
        {100, 200, 300, wide.num_draft} - {count for count in (300,) if count > wide.num_ids}
    )
    assert all(shown[-1].token_ids[: len(told.token_ids)] == told.token_ids for told in shown)


def test_a_request_longer_than_a_slot_fails_alone(ar_model: ArModel) -> None:
    """It is told how long it is and how long it may be; its neighbour is served."""
    engine = ArEngine(ar_model, slots=2, cache_tokens=400)
    engine.start()
    too_long = engine.submit(replace(QUICK, prompt="cat " * 100), ignore, never)
    fits = engine.submit(QUICK, ignore, never)

    with pytest.raises(PermanentWorkError, match=r"room for 400$"):
        too_long.result(timeout=60)
    assert fits.result(timeout=60).token_ids
    engine.close()


def test_out_of_memory_in_a_prefill_fails_that_request_alone(adapted: AdaptedModel) -> None:
    """The others of the turn write on, and the slot is free again."""
    engine = ArEngine(adapted, slots=2)
    engine.start()
    go_on = hold_engine(engine)
    fails, fits = engine.submit(replace(QUICK, lora=(LoraChoice("out-of-memory"),)), ignore, never), engine.submit(QUICK, ignore, never)
    go_on.set()

    with pytest.raises(TransientWorkError) as caught:
        fails.result(timeout=60)

    assert caught.value.code == "ar_oom"
    assert fits.result(timeout=60) == engine.submit(QUICK, ignore, never).result(timeout=60)
    engine.close()


@pytest.mark.parametrize("mode", ["off", "static"])
def test_a_row_that_overflows_fails_alone(adapted: AdaptedModel, mode: CompileMode) -> None:
    """Among three, those beside it and those that take its slot get their ids, drawn or likeliest; it is not worth another try."""
    engine = ArEngine(adapted, slots=3, cache_tokens=512, compile_mode=mode)
    engine.start()
    others = [replace(QUICK, seed=seed, grid=TokenGrid(3, 3), temperature=(0.9, 0.0)[seed % 2]) for seed in range(4)]
    alone = [engine.submit(request, ignore, never).result(timeout=60) for request in others]
    for temperature in (0.9, 0.0):
        overflows = replace(QUICK, prompt="cat " * 50, lora=(LoraChoice("overflow"),), temperature=temperature)
        go_on = hold_engine(engine)
        # One slot is the holder's, so the overflowing row's is given to the one behind it.
        futures = [engine.submit(request, ignore, never) for request in (others[0], overflows, *others[1:])]
        go_on.set()
        error = futures.pop(1).exception(timeout=60)

        assert [future.result(timeout=60) for future in futures] == alone
        assert isinstance(error, PermanentWorkError)
        assert error.code == "ar_overflow"
    engine.close()


def test_out_of_memory_in_a_step_fails_no_more_rows_than_it_must(adapted: AdaptedModel) -> None:
    """Rows that are too many at once are run by halves; those for which memory lacks all the same fail, and no others."""
    engine = ArEngine(adapted, slots=8)
    engine.start()
    fail, too_many = (LoraChoice("out-of-memory-later", 0.5),), (LoraChoice("out-of-memory-together", 0.5),)
    wanted = [replace(QUICK, seed=seed, lora=lora) for seed, lora in enumerate([(), too_many, fail, too_many, fail, (), too_many])]
    expected = [
        engine.submit(replace(one, lora=(LoraChoice("style", 0.5),) if one.lora else ()), ignore, never).result(timeout=60)
        for one in wanted
        if one.lora != fail
    ]
    go_on = hold_engine(engine)
    futures = [engine.submit(one, ignore, never) for one in wanted]
    go_on.set()
    failed = [future.exception(timeout=60) for future, one in zip(futures, wanted, strict=True) if one.lora == fail]

    assert [future.result(timeout=60) for future, one in zip(futures, wanted, strict=True) if one.lora != fail] == expected
    assert [error.code for error in failed if isinstance(error, TransientWorkError)] == ["ar_oom"] * 2
    engine.close()


def test_a_draw_that_fails_for_all_is_made_for_each(ar_model: ArModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is short in the middle of a draw costs no request its ids."""
    engine = ArEngine(ar_model, slots=4)
    engine.start()
    requests = [replace(QUICK, seed=seed, temperature=(0.9, 0.0)[seed % 2]) for seed in range(3)]
    alone = [engine.submit(request, ignore, never).result(timeout=60) for request in requests]

    def lack_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory for a race")

    # After the generators were moved on.
    monkeypatch.setattr(Race, "_judge", lack_memory)

    assert submit_together(engine, requests) == alone
    engine.close()


def test_adapters_share_the_engine_but_no_step(adapted: AdaptedModel) -> None:
    """Requests with adapters, mixed with others in any order, get what they get alone, and are read with their own adapters."""
    engine = ArEngine(adapted, slots=6)
    engine.start()
    one, two = (LoraChoice("style", 0.5),), (LoraChoice("style", 2.0),)
    mixed = [
        replace(QUICK, seed=seed, grid=TokenGrid(3, 2 + seed % 3), lora=lora) for seed, lora in enumerate([(), one, two, one, (), two, one])
    ]
    alone = [engine.submit(request, ignore, never).result(timeout=60) for request in mixed]

    assert submit_together(engine, mixed) == alone
    assert submit_together(engine, mixed[::-1]) == alone[::-1]
    assert alone[1] != engine.submit(replace(mixed[1], lora=()), ignore, never).result(timeout=60)
    engine.close()


def test_long_prompts_do_not_hold_up_those_who_write(ar_model: ArModel) -> None:
    """Once a turn has read as many prompt ids as it may, the next request waits until all others have had an id."""
    engine = ArEngine(ar_model, prefill_tokens_per_turn=1)
    engine.start()
    go_on = hold_engine(engine)
    order: list[int] = []
    requests = [replace(QUICK, prompt=f"A cat {i}") for i in range(3)]
    futures = [engine.submit(request, lambda phase, done, total, i=i: order.append(i), never) for i, request in enumerate(requests)]
    go_on.set()
    wait(futures, timeout=60)
    engine.close()

    assert [sorted(turn) for turn in (order[:1], order[1:3], order[3:6], order[6:9])] == [[0], [0, 1], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("mode", ["static", "compile"])
def test_every_way_to_run_a_step_writes_the_same(ar_model: ArModel, mode: CompileMode) -> None:
    """In shapes that come again, and as torch.compile traces it, the ids are those of a step over the live rows."""
    requests = [replace(QUICK, seed=seed, grid=TokenGrid(3, 2 + seed)) for seed in range(3)]
    results = []
    for one in ("off", mode):
        engine = ArEngine(ar_model, slots=4, cache_tokens=512, compile_mode=one, compiler="eager")
        engine.start()
        futures = [engine.submit(request, ignore, never) for request in requests]
        results.append([future.result(timeout=200) for future in futures])
        engine.close()

    assert results[0] == results[1]


def test_in_bfloat16_steps_of_one_shape_make_a_grid_the_same_beside_all(tmp_path: Path) -> None:
    """Alone, in a crowd, and going on where another attempt was: every step has as many rows, so all rounds alike."""
    # Wide enough that products of fewer rows are summed in another order.
    widths = random_miniature.Widths(codebook=16384, ar_hidden=256, ar_head_dim=128, ar_ff=512)
    model = load_ar_model(random_miniature.build(tmp_path / "wide", widths), "cpu", "bfloat16")
    engine = ArEngine(model, slots=5, cache_tokens=1024, compile_mode="static", show_every=1)
    engine.start()
    requests = [replace(QUICK, seed=seed, grid=TokenGrid(8 + seed % 3, 8)) for seed in range(5)]
    # Beside which all attend to twice as much.
    requests[4] = replace(requests[4], prompt="A cat " * 60)
    shown: list[WrittenTokens] = []
    first = engine.submit(requests[0], ignore, never, shown.append).result(timeout=60)
    alone = [first, *(engine.submit(request, ignore, never).result(timeout=60) for request in requests[1:])]
    resumed = [replace(requests[0], written=shown[count].token_ids) for count in (0, 7, 30)]

    assert submit_together(engine, requests) == alone
    assert submit_together(engine, [*resumed, requests[1]]) == [first] * 3 + [alone[1]]
    engine.close()
