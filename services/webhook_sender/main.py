"""Entry of the webhook sender: settings, wiring, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import structlog

from services.webhook_sender.deliver import Deliverer
from services.webhook_sender.letter import LetterWriter
from services.webhook_sender.outbox import LedgerOutbox
from services.webhook_sender.progress import ProgressTeller
from services.webhook_sender.sender import Sender
from services.webhook_sender.settings import WebhookSenderSettings
from services.webhook_sender.words import LiveWords
from shared.db import Database
from shared.egress import EgressPolicy
from shared.errors import StartupError
from shared.interpreter import begin_to_serve
from shared.logs import configure_logs
from shared.progress import LiveState
from shared.sealing import Sealer
from shared.settings import read_settings
from shared.storage import Storage
from shared.wakeup import Topic


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    try:
        settings = read_settings(WebhookSenderSettings)
        configure_logs(settings, "webhook_sender")
        policy = EgressPolicy(settings.egress_allow)
        sealer = Sealer(settings.secret_key.get_secret_value())
    except StartupError as error:
        sys.exit(f"webhook sender: {error}")
    asyncio.run(_run(settings, policy, sealer))


async def _run(settings: WebhookSenderSettings, policy: EgressPolicy, sealer: Sealer) -> None:
    live = LiveState(settings.redis_url.get_secret_value())
    # One more for the progress, which has a thread of its own.
    db = Database(settings.database_url.get_secret_value(), settings.db_pool_size + 1, live.tell_changes)
    writer = LetterWriter(Storage(settings), sealer, settings)
    outbox = LedgerOutbox(db, settings.webhook_lease_s, writer.body)
    loop = asyncio.get_running_loop()
    # As many threads as connections are left: a thread more would only wait for one.
    loop.set_default_executor(ThreadPoolExecutor(settings.db_pool_size, "ledger"))
    async with Deliverer(policy, settings.webhook_timeout_s, settings.webhook_connect_s) as poster:
        sender = Sender(outbox, writer, poster, settings)
        telling = asyncio.create_task(_tell_progress(LiveWords(db, live, writer.body), writer, poster, settings))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, sender, telling, settings.shutdown_s)
        listener = live.listen({Topic.DELIVERIES_DUE: lambda: loop.call_soon_threadsafe(sender.wake)})
        begin_to_serve()
        structlog.get_logger().info("started")
        await sender.run()
        telling.cancel()
        await asyncio.wait([telling])
        await asyncio.to_thread(listener.close)
    db.close()
    structlog.get_logger().info("stopped")


async def _tell_progress(words: LiveWords, writer: LetterWriter, poster: Deliverer, settings: WebhookSenderSettings) -> None:
    if settings.webhook_progress_concurrency:
        await ProgressTeller(words, writer, poster, settings.webhook_progress_concurrency).run()


def _stop(sender: Sender, telling: asyncio.Task[None], shutdown_s: float) -> None:
    telling.cancel()
    sender.stop()
    # For a database that hangs in a thread, which nothing can interrupt; the leases make a sudden end harmless.
    last_resort = threading.Timer(shutdown_s, os._exit, (1,))
    last_resort.daemon = True
    last_resort.start()
