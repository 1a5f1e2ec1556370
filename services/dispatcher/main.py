"""
The dispatcher's loop, under one advisory lock: release, rescue, expire; and beside it, retention. A second dispatcher stands by.

Wake-ups make it quick and ticks make it certain: whatever was not rung for is found by the next tick, which comes often while Redis is
away and seldom while rings are heard.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from functools import partial

import structlog

from services.dispatcher.doorbell import Doorbell
from services.dispatcher.publisher import Publisher
from services.dispatcher.release import Releaser
from services.dispatcher.rescue import rescue_all
from services.dispatcher.retention import Retention
from services.dispatcher.settings import DispatcherSettings
from services.dispatcher.sweeper import Sweeper
from shared.db import Database, DatabaseDownError, LeaderLock
from shared.errors import StartupError
from shared.interpreter import begin_to_serve
from shared.logs import configure_logs
from shared.progress import LiveState
from shared.queue import make_celery
from shared.settings import read_settings
from shared.storage import Storage
from shared.wakeup import READY

_LOCK = 0x676C6D71_64697370
"""Advisory lock of the one active dispatcher ("glmqdisp")."""

_STANDBY_S = 1.0
_MIN_PAUSE_S = 0.002

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
    """Dispatch while we are the leader, until `stopping` is set. All that is held in memory is whose turn it is: a crash loses no work."""
    live = LiveState(settings.redis_url.get_secret_value())
    db = Database(settings.database_url.get_secret_value(), pool_size=4, on_changes=live.tell_changes)
    lock = LeaderLock(db, _LOCK)
    doorbell = Doorbell()
    listener = live.listen({topic: partial(doorbell.ring, stage) for stage, topic in READY.items()})
    publisher = Publisher(make_celery(settings.redis_url.get_secret_value()))
    publisher.start()
    releaser = Releaser(db, live, publisher, settings)
    Sweeper(db, Storage(settings), stopping).start()
    leading = threading.Event()
    Retention(db, live, settings, leading, stopping).start()
    rescued_at = ticked_at = float("-inf")
    is_leader = was_leader = False
    begin_to_serve()
    while not stopping.is_set():
        pause_s = settings.slow_tick_s if listener.is_hearing else settings.tick_s
        try:
            stages = doorbell.take()
            is_tick = time.monotonic() - ticked_at >= pause_s
            if is_tick:
                ticked_at = time.monotonic()
                is_leader = lock.is_held()
                if is_leader != was_leader:
                    log.info("leader" if is_leader else "standby")
                    was_leader = is_leader
                    (leading.set if is_leader else leading.clear)()
            if not is_leader:
                stopping.wait(_STANDBY_S)
                continue
            if is_tick:
                releaser.tick()
            else:
                releaser.release(stages)
            if time.monotonic() - rescued_at >= settings.rescue_s:
                rescue_all(db, live)
                rescued_at = time.monotonic()
        except DatabaseDownError as error:
            log.warning("database_away", error=str(error))
            # The next thing to do is to find out whether we are still the leader.
            ticked_at = float("-inf")
            stopping.wait(_STANDBY_S)
            continue
        except Exception:  # what is wrong with one row must not end the process that looks after all the others
            log.exception("dispatch_failed")
            stopping.wait(_STANDBY_S)
            continue
        # In a burst of rings, what has come meanwhile is released in one go.
        stopping.wait(_MIN_PAUSE_S)
        doorbell.wait(ticked_at + pause_s - time.monotonic())
    listener.close()
    lock.drop()
    db.close()
