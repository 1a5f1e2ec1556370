"""Messages to workers, as they lie in the broker."""

from __future__ import annotations

import json

import redis

from shared.queue import QUEUES, TASK_NAMES, make_celery, send_work
from shared.states import Stage
from shared.trace import TraceContext

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_messages_carry_ids_and_traces(redis_url: str) -> None:
    """One id each, and in the headers the trace of the request that it belongs to, if it has one."""
    broker = redis.Redis.from_url(redis_url)
    broker.delete(QUEUES[Stage.AR])
    send_work(make_celery(redis_url), Stage.AR, {"tok_1": TraceContext(PARENT, "a=1"), "tok_2": None})
    messages = [json.loads(text) for text in reversed(broker.lrange(QUEUES[Stage.AR], 0, -1))]
    broker.delete(QUEUES[Stage.AR])
    broker.close()
    assert [message["headers"]["argsrepr"] for message in messages] == ["['tok_1']", "['tok_2']"]
    assert {message["headers"]["task"] for message in messages} == {TASK_NAMES[Stage.AR]}
    assert [message["headers"].get("traceparent") for message in messages] == [PARENT, None]
    assert [message["headers"].get("tracestate") for message in messages] == ["a=1", None]
