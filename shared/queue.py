"""
Celery: one factory, and the names by which the dispatcher and the workers meet.

A message carries one id and nothing else, and is safe to lose, double or delay: Postgres owns the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_shutting_down
from kombu.exceptions import OperationalError

from shared.errors import GlmqError
from shared.states import Stage
from shared.trace import TraceContext

TASK_NAMES = {Stage.AR: "ar.generate_grid", Stage.DECODER: "decoder.render_image"}
QUEUES = {Stage.AR: "ar", Stage.DECODER: "decoder"}


class BrokerDownError(GlmqError):
    """The broker is away. Nothing is lost: idle workers ask Postgres for released work."""


def make_celery(redis_url: str) -> Any:
    """
    A Celery app on this broker. Any: Celery publishes no types.

    Early acknowledgement and no prefetch: recovery belongs to the lease. The socket timeout is what lets a worker notice
    a connection that died without a word; with Celery's default, none, it never consumes again.
    """
    app = Celery("glmq", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        task_publish_retry=False,
        task_create_missing_queues=True,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "visibility_timeout": 120,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
        },
    )
    return app


Traced = Mapping[str, TraceContext | None]
"""Ids of work, and the trace that each belongs to."""


def send_work(app: Any, stage: Stage, work_ids: Traced) -> None:
    """
    Publish ids of released work on one connection; their traces are in the headers `traceparent` and `tracestate`.

    Raises:
        BrokerDownError
    """
    try:
        with app.producer_or_acquire() as producer:
            for work_id, trace in work_ids.items():
                headers = {} if trace is None else trace.headers()
                app.send_task(TASK_NAMES[stage], args=[work_id], queue=QUEUES[stage], producer=producer, headers=headers)
    except (OperationalError, OSError) as error:
        raise BrokerDownError(type(error).__name__) from error


def consume(app: Any, stage: Stage, slots: int, handle: Callable[[str], object], on_shutdown: Callable[[], None]) -> None:
    """
    Run a Celery worker in this thread until SIGTERM or SIGINT; `handle` is called in one of `slots` threads.

    The threads pool, because forked children cannot share CUDA, a loaded model or database connections.

    Args:
        on_shutdown: called once, in the signal handler; must only set flags.
    """
    app.task(name=TASK_NAMES[stage])(handle)
    # Celery warns a worker that runs as root because of pickled messages; ours accept JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Or Celery would set the root logger to its own level, and our lines would be gone.
    setup_logging.connect(lambda **_: None, weak=False)
    worker_shutting_down.connect(lambda **_: on_shutdown(), weak=False)
    worker = app.Worker(
        pool="threads",
        concurrency=slots,
        queues=[QUEUES[stage]],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
