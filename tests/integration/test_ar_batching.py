"""Whatever shares the engine with a request, and whenever it came, its ids are those that GlmImagePipeline writes for it alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.ar_worker import decode_step
from services.ar_worker.engine import ArEngine, GridResult, WrittenTokens
from services.ar_worker.weights import ArModel, load_ar_model
from shared.errors import WorkStoppedError
from tests.integration.test_ar_exact import load_reference, picture, request, write_by_reference

TEXT_TO_IMAGE = [
    request("A cat", (64, 64), seed=1),
    request('A sign that says "OPEN"', (128, 96), seed=2, temperature=1.4, top_p=1.0),
    request("A cat", (64, 64), seed=3),
]
IMAGE_TO_IMAGE = [
    request("Make it blue", (64, 64), seed=4, sources=(picture(0, 64, 64),)),
    request("Make it blue", (64, 64), seed=5, temperature=1e-6, sources=(picture(0, 64, 64),)),
    request("", (96, 160), seed=6, sources=(picture(1, 64, 96), picture(2, 96, 64))),
    request("It's a dog's 'B' then “C”, on a long line of text that takes many tokens", (256, 64), seed=7, sources=(picture(3, 64, 128),)),
    request("A dog", (128, 128), seed=8, temperature=2.0, top_p=0.3, sources=(picture(0, 64, 64),)),
]
REQUESTS = [*TEXT_TO_IMAGE, *IMAGE_TO_IMAGE]


@pytest.fixture(scope="module")
def model(miniature: Path) -> ArModel:
    return load_ar_model(miniature, "cpu", "float32")


@pytest.fixture(scope="module", params=["off", "static"])
def engine(model: ArModel, request: pytest.FixtureRequest) -> Iterator[ArEngine]:
    """Three slots, so that requests also wait, two of them attended to together; every id is shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_step, "ATTENDED_ROWS", 2)
        engine = ArEngine(model, slots=3, cache_tokens=1024, compile_mode=request.param, show_every=1)
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(miniature: Path) -> list[GridResult]:
    """What the reference writes for each of REQUESTS."""
    reference = load_reference(miniature)
    return [write_by_reference(reference, wanted) for wanted in REQUESTS]


@pytest.fixture(scope="module")
def written(model: ArModel, expected: list[GridResult]) -> list[tuple[int, ...]]:
    """All ids of each of REQUESTS, draft first, of which the reference shows only the grid."""
    engine = ArEngine(model, slots=8, show_every=1)
    engine.start()
    shown: list[list[WrittenTokens]] = [[] for _ in REQUESTS]
    futures = [engine.submit(one, lambda *_: None, lambda: False, told.append) for one, told in zip(REQUESTS, shown, strict=True)]
    assert [future.result(timeout=120) for future in futures] == expected
    engine.close()
    return [told[-1].token_ids for told in shown]


@dataclass
class Visit:
    """
    One request of a crowd.

    Attributes:
        which: of REQUESTS.
        arrives_at: ids that the crowd has when it comes.
        resumed: ids it brings along.
        stops_at: ids after which it is stopped; None for never.
    """

    which: int
    arrives_at: int
    resumed: int = 0
    stops_at: int | None = None
    draft_only: bool = False
    num_told: int = 0
    shown: list[WrittenTokens] = field(default_factory=list)
    future: Any = None


def visits() -> st.SearchStrategy[Visit]:
    # Drafts are long, so most requests have none.
    which = st.one_of(st.integers(0, len(REQUESTS) - 1), *[st.integers(len(TEXT_TO_IMAGE), len(REQUESTS) - 1)] * 2)
    return st.builds(
        Visit,
        which=which,
        arrives_at=st.integers(0, 300),
        resumed=st.one_of(st.just(0), st.integers(0, 280)),
        stops_at=st.one_of(st.none(), st.none(), st.integers(0, 40)),
        draft_only=st.booleans(),
    )


def run_crowd(engine: ArEngine, crowd: list[Visit], written: list[tuple[int, ...]]) -> None:
    """Submit each when the crowd has written enough, or when nobody is left who could write; and wait for all."""
    waiting = sorted(crowd, key=lambda visit: visit.arrives_at)
    come: list[Visit] = []
    num_ids = 0
    # Most are submitted on the engine's thread, between two ids.
    lock = threading.RLock()

    def submit(visit: Visit) -> None:
        wanted = REQUESTS[visit.which]
        visit.draft_only = visit.draft_only and not wanted.sources
        wanted = replace(wanted, draft_only=visit.draft_only, written=written[visit.which][: visit.resumed])

        def on_progress(phase: str, done: int, total: int) -> None:
            nonlocal num_ids
            visit.num_told += 1
            with lock:
                num_ids += 1
                while waiting and waiting[0].arrives_at <= num_ids:
                    submit(waiting.pop(0))

        def should_stop() -> bool:
            return visit.stops_at is not None and visit.num_told >= visit.stops_at

        visit.future = engine.submit(wanted, on_progress, should_stop, visit.shown.append)
        come.append(visit)

    while waiting:
        with lock:
            submit(waiting.pop(0))
        # The list grows meanwhile, and the loop with it.
        for visit in come:
            visit.future.exception(timeout=120)


# Not shrunk: an example takes seconds.
@settings(
    deadline=None,
    max_examples=6,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(crowd=st.lists(visits(), min_size=2, max_size=7))
def test_a_crowd_changes_no_id(engine: ArEngine, expected: list[GridResult], written: list[tuple[int, ...]], crowd: list[Visit]) -> None:
    """Requests of all kinds come, go on where another left off, are stopped or end with their draft: each gets the reference's ids."""
    run_crowd(engine, crowd, written)

    for visit in crowd:
        wanted, ids = REQUESTS[visit.which], written[visit.which]
        end = wanted.num_draft if visit.draft_only else len(ids)
        begin = min(visit.resumed, end)
        if visit.stops_at is not None and visit.stops_at < max(end - begin, 1):
            assert isinstance(visit.future.exception(), WorkStoppedError)
            end = begin + visit.stops_at
        elif visit.draft_only:
            assert visit.future.result().token_ids == []
        else:
            assert visit.future.result() == expected[visit.which]
        assert [told.token_ids for told in visit.shown] == [ids[:count] for count in range(begin + 1, end + 1)]


@pytest.mark.parametrize("which", [1, 6])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_a_successor_ends_with_the_same_ids(
    engine: ArEngine, expected: list[GridResult], written: list[tuple[int, ...]], which: int, share: float
) -> None:
    """Killed after any number of ids, a grid that goes on from those is the grid of one go, and only the rest is computed."""
    count = round(share * len(written[which]))
    told: list[int] = []

    future = engine.submit(replace(REQUESTS[which], written=written[which][:count]), lambda *_: told.append(1), lambda: False)

    assert future.result(timeout=120) == expected[which]
    assert len(told) == len(written[which]) - count
