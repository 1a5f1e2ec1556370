"""The loop delivers everything once, holds its limits, and stops in time whatever receivers and the database do."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from services.webhook_sender.schedule import Answer
from services.webhook_sender.sender import Sender
from services.webhook_sender.settings import WebhookSenderSettings
from shared.lifecycle.deliveries import Delivery, Kind
from tests.fakes import FakeOutbox, FakePoster, FakeWriter, make_delivery

OK = Answer(200)


def settings(**changes: Any) -> WebhookSenderSettings:
    return WebhookSenderSettings(
        database_url="postgresql://h/d",
        redis_url="redis://h",
        s3_endpoint="http://h",
        s3_access_key="k",
        s3_secret_key="s",
        secret_key="k",
        **{"webhook_poll_s": 0.01, "shutdown_s": 3.1, **changes},
    )


def delivery(number: int, host: str = "a.example", attempt: int = 0, tenant_id: str = "ten_1", kind: Kind = "live") -> Delivery:
    return make_delivery(number, f"{tenant_id}/{host}", f"https://{host}/hook?token=secret", attempt, tenant_id, kind)


async def run_until_finished(sender: Sender, outbox: FakeOutbox, num_outcomes: int, limit_s: float = 5) -> None:
    running = asyncio.create_task(sender.run())
    async with asyncio.timeout(limit_s):
        while len(outbox.outcomes) < num_outcomes:
            await asyncio.sleep(0.005)
    sender.stop()
    await running


def test_everything_due_is_posted_once() -> None:
    """Each delivery gets one outcome, and a stopped sender returns."""
    outbox, poster = (
        FakeOutbox([delivery(n, f"{n % 7}.example") for n in range(60)]),
        FakePoster({f"{n}.example": (0, OK) for n in range(7)}),
    )
    asyncio.run(run_until_finished(Sender(outbox, FakeWriter(), poster, settings()), outbox, 60))
    assert sorted(name for name, _, _ in outbox.outcomes) == sorted(f"whd_{n}" for n in range(60))
    assert sorted(poster.posted) == sorted(f"evt_{n}" for n in range(60))
    assert {outcome.state for _, _, outcome in outbox.outcomes} == {"delivered"}
    assert not outbox.released


def test_a_hanging_host_delays_nobody() -> None:
    """With many deliveries to a host that hangs, four wait there and all others go out at once."""
    due = [delivery(n, "dead.example") for n in range(50)] + [delivery(100 + n, f"{n}.example") for n in range(20)]
    outbox = FakeOutbox(due)
    poster = FakePoster({"dead.example": (60, OK), **{f"{n}.example": (0.01, OK) for n in range(20)}})
    started = time.monotonic()
    asyncio.run(run_until_finished(Sender(outbox, FakeWriter(), poster, settings()), outbox, 20))
    assert time.monotonic() - started < 20
    assert poster.most_at_once["dead.example"] == 4
    assert not any(name in outbox.released for name, _, _ in outbox.outcomes)


def test_no_more_than_the_limit_are_in_flight() -> None:
    """The process's own bound holds however much is due; half of it is for one tenant."""
    outbox, poster = FakeOutbox([delivery(n) for n in range(30)]), FakePoster({"a.example": (0.01, OK)})
    few = settings(webhook_concurrency=6, webhook_per_endpoint=100, webhook_per_host=100)
    asyncio.run(run_until_finished(Sender(outbox, FakeWriter(), poster, few), outbox, 30))
    assert poster.most_at_once["a.example"] == 3


def test_stopping_finishes_the_quick_and_releases_the_slow() -> None:
    """What answers in time is written down; what does not is given back, untried, before the process must end."""
    outbox = FakeOutbox([delivery(1, "quick.example"), delivery(2, "hung.example")])
    poster = FakePoster({"quick.example": (0.05, OK), "hung.example": (60, OK)})
    sender = Sender(outbox, FakeWriter(), poster, settings())

    async def story() -> float:
        running = asyncio.create_task(sender.run())
        while outbox.due:
            await asyncio.sleep(0.005)
        sender.stop()
        started = time.monotonic()
        await running
        return time.monotonic() - started

    assert asyncio.run(story()) < 3.1
    assert [name for name, _, _ in outbox.outcomes] == ["whd_1"]
    assert outbox.released == ["whd_2"]


def test_a_database_that_restarts_costs_time_only() -> None:
    """Failing calls are repeated; nothing is posted twice by it."""
    outbox, poster = FakeOutbox([delivery(1)], broken=1), FakePoster({"a.example": (0.02, OK)})
    sender = Sender(outbox, FakeWriter(), poster, settings())

    async def story() -> None:
        running = asyncio.create_task(sender.run())
        while outbox.due:
            await asyncio.sleep(0.005)
        outbox.broken = 2
        while not outbox.outcomes:
            await asyncio.sleep(0.005)
        sender.stop()
        await running

    asyncio.run(asyncio.wait_for(story(), 5))
    assert poster.posted == ["evt_1"]


def test_a_woken_sender_does_not_wait_for_its_poll() -> None:
    """What becomes due after a look is posted as soon as the sender is woken, however long its poll is."""
    outbox, poster = FakeOutbox([]), FakePoster({"a.example": (0, OK)})
    sender = Sender(outbox, FakeWriter(), poster, settings(webhook_poll_s=60))

    async def story() -> None:
        running = asyncio.create_task(sender.run())
        await asyncio.sleep(0.1)
        outbox.due.append(delivery(1))
        sender.wake()
        while not outbox.outcomes:
            await asyncio.sleep(0.005)
        sender.stop()
        await running

    asyncio.run(asyncio.wait_for(story(), 5))
    assert poster.posted == ["evt_1"]


def test_a_letter_that_cannot_be_written_is_tried_later() -> None:
    """A fault of ours uses up an attempt instead of spinning, and posts nothing."""
    outbox, poster = FakeOutbox([delivery(1)]), FakePoster({})
    asyncio.run(run_until_finished(Sender(outbox, FakeWriter(is_broken=True), poster, settings()), outbox, 1))
    _, attempt, outcome = outbox.outcomes[0]
    assert (attempt, outcome.state, outcome.error) == (1, "pending", "the webhook could not be prepared")
    assert not poster.posted


def test_a_delivery_that_ends_senders_is_given_up() -> None:
    """Claimed for the eleventh time without an outcome, it is not posted again."""
    outbox, poster = FakeOutbox([delivery(1, attempt=10)]), FakePoster({})
    asyncio.run(run_until_finished(Sender(outbox, FakeWriter(), poster, settings()), outbox, 1))
    assert outbox.outcomes[0][2].state == "exhausted"
    assert not poster.posted
