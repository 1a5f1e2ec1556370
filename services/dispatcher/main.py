"""The dispatcher's loop, under one advisory lock: release, rescue, expire. A second dispatcher stands by."""

from __future__ import annotations

import signal
import sys
import threading
import time

import structlog

from services.dispatcher.publisher import Publisher
from services.dispatcher.release import Releaser
from services.dispatcher.rescue import rescue_all
from services.dispatcher.settings import DispatcherSettings
from shared.db import Database, DatabaseDownError, LeaderLock
from shared.errors import StartupError
from shared.logs import configure_logs
from shared.progress import LiveState
from shared.queue import make_celery
from shared.settings import read_settings

_LOCK = 0x676C6D71_64697370
"""Advisory lock of the one active dispatcher ("glmqdisp")."""

_STANDBY_S = 1.0

log = structlog.get_logger()


def main() -> None:
    """Run until SIGTERM."""
    try:
        settings = read_settings(DispatcherSettings)
    except StartupError as error:
        sys.exit(f"dispatcher: {error}")
    configure_logs(settings, "dispatcher")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    run(settings, stopping)


def run(settings: DispatcherSettings, stopping: threading.Event) -> None:
    """Dispatch while we are the leader, until `stopping` is set. Nothing is held in memory: a crash loses nothing."""
    db = Database(settings.database_url.get_secret_value(), pool_size=2)
    lock = LeaderLock(db, _LOCK)
    live = LiveState(settings.redis_url.get_secret_value())
    publisher = Publisher(make_celery(settings.redis_url.get_secret_value()))
    publisher.start()
    releaser = Releaser(db, publisher, settings)
    rescued_at = float("-inf")
    was_leader = False
    while not stopping.is_set():
        pause_s = settings.tick_s
        try:
            is_leader = lock.is_held()
            if is_leader != was_leader:
                log.info("leader" if is_leader else "standby")
                was_leader = is_leader
            if not is_leader:
                stopping.wait(_STANDBY_S)
                continue
            releaser.tick()
            if time.monotonic() - rescued_at >= settings.rescue_s:
                rescue_all(db, live)
                rescued_at = time.monotonic()
        except DatabaseDownError as error:
            log.warning("database_away", error=str(error))
            pause_s = _STANDBY_S
        stopping.wait(pause_s)
    lock.drop()
    db.close()
