"""Webhooks before they are stored."""

from __future__ import annotations

import time

import pytest

from infra.embedded.ports import free_port
from services.api.schemas import Webhook
from services.api.waiting import Waiting
from services.api.webhooks.callbacks import check_webhook
from shared.egress import EgressPolicy
from shared.errors import ForbiddenAddressError
from shared.lifecycle.events import JOB_EVENTS
from shared.progress import LiveState
from tests.fakes import FakeResolver


@pytest.fixture
def waiting() -> Waiting:
    """Of a process that works on one request at once; nobody tells of changes."""
    return Waiting(LiveState(f"redis://127.0.0.1:{free_port()}/0"), turns=1, places=2)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ["job.canceled", "job.expired", "job.failed", "job.succeeded"]),
        (["job.succeeded", "job.queued", "job.queued"], ["job.queued", "job.succeeded"]),
        (["job.queued", "job.*"], list(JOB_EVENTS)),
        (["job.progress"], ["job.progress"]),
        (["job.progress", "job.*"], [*JOB_EVENTS, "job.progress"]),
    ],
)
def test_events_are_named_one_by_one(waiting: Waiting, asked: list[str] | None, expected: list[str]) -> None:
    """The row lists concrete events, each once; without a choice, the ends of a job. Progress is told to those who name it."""
    webhook = Webhook(url="https://hooks.example/x", events=asked)
    stored = check_webhook(EgressPolicy(resolver=FakeResolver(hooks_example=[["93.184.216.34"]])), waiting, webhook, "webhook")
    assert stored == {"url": "https://hooks.example/x", "events": expected}


def test_name_without_address_is_accepted(waiting: Waiting) -> None:
    """A receiver may be set up after the job."""
    assert (
        check_webhook(EgressPolicy(resolver=FakeResolver()), waiting, Webhook(url="https://later.example"), "webhook")["url"]
        == "https://later.example/"
    )


def test_inside_name_is_refused(waiting: Waiting) -> None:
    """One inside address among public ones is enough."""
    policy = EgressPolicy(resolver=FakeResolver(both_example=[["93.184.216.34", "10.0.0.7"]]))
    with pytest.raises(ForbiddenAddressError) as caught:
        check_webhook(policy, waiting, Webhook(url="https://both.example/"), "webhook.url")
    assert caught.value.param == "webhook.url"


def test_slow_resolver_does_not_hold_the_request(waiting: Waiting) -> None:
    """A name server that does not answer costs seconds; the sender will ask again."""

    def slow(host: str, port: int) -> list[str]:
        time.sleep(30)
        return []

    started = time.monotonic()
    assert check_webhook(EgressPolicy(resolver=slow), waiting, Webhook(url="https://slow.example/"), "webhook")
    assert time.monotonic() - started < 20
