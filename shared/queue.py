"""
Celery: one factory, and the names by which the dispatcher and the workers meet.

A message carries one id and nothing else, and is safe to lose, double or delay: Postgres owns the work.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from shared.states import Stage

TASK_NAMES = {Stage.AR: "ar.generate_grid", Stage.DECODER: "decoder.render_image"}
QUEUES = {Stage.AR: "ar", Stage.DECODER: "decoder"}


def make_celery(redis_url: str) -> Any:
    """
    A Celery app on this broker. Any: Celery publishes no types.

    Early acknowledgement and no prefetch: recovery belongs to the lease. The socket timeout is what lets a worker notice
    a connection that died without a word; with Celery's default it never consumes again (RELIABILITY.md M3).
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


def send_work(app: Any, stage: Stage, work_ids: list[str]) -> None:
    """
    Publish ids of released work on one connection.

    Raises:
        kombu.exceptions.OperationalError: the broker is away. Nothing is lost: idle workers ask Postgres.
    """
    with app.producer_or_acquire() as producer:
        for work_id in work_ids:
            app.send_task(TASK_NAMES[stage], args=[work_id], queue=QUEUES[stage], producer=producer)
