"""What the API is made of besides Flask: made once by `create_app`, handed to every blueprint."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from flask import request

from services.api.auth import Callers
from services.api.content_policy import ContentPolicy
from services.api.fleet import FleetReader
from services.api.inserts import Inserts
from services.api.loaded_model import LoadedModel
from services.api.outlook import Outlook
from services.api.quotas import Quotas
from services.api.settings import ApiSettings
from services.api.waiting import Waiting
from shared.db import Database
from shared.egress import EgressPolicy, Resolver, system_resolver
from shared.progress import LiveState
from shared.sealing import Sealer
from shared.states import Stage
from shared.storage import Storage
from shared.wakeup import READY


@dataclass(frozen=True)
class Parts:
    """Thread-safe, each of them."""

    settings: ApiSettings
    db: Database
    callers: Callers
    inserts: Inserts
    storage: Storage
    live: LiveState
    policy: EgressPolicy
    sealer: Sealer
    content: ContentPolicy
    model: LoadedModel
    fleet: FleetReader
    outlook: Outlook
    fetch_slots: threading.Semaphore
    """Requests that may wait for foreign servers at once; the other threads stay free for everybody else."""
    waiting: Waiting
    quotas: Quotas

    def close(self) -> None:
        """End every wait, and close the connections to the ledger."""
        self.waiting.close()
        self.db.close()

    def ring_for_work(self, stages: Iterable[Stage] = Stage) -> None:
        """A job was written or goes on: have its work of these stages released at once. Never waits."""
        self.live.ring(*(READY[stage] for stage in stages))

    def base_url(self) -> str:
        """What absolute links of an answer begin with: the public URL, or the host that the client asked."""
        return (self.settings.public_url or request.host_url).rstrip("/")


def make_parts(settings: ApiSettings, resolver: Resolver = system_resolver) -> Parts:
    """
    Make every client. Opens no connection yet, so the API starts while its stores are still starting.

    Raises:
        StartupError: a setting has a value that cannot be used.
    """
    live = LiveState(settings.redis_url.get_secret_value())
    db = Database(settings.database_url.get_secret_value(), settings.db_pool_size, live.tell_changes)
    fleet = FleetReader(db)
    return Parts(
        settings=settings,
        db=db,
        callers=Callers(db),
        inserts=Inserts(db),
        storage=Storage(settings),
        live=live,
        policy=EgressPolicy(settings.egress_allow, resolver),
        sealer=Sealer(settings.secret_key.get_secret_value()),
        content=ContentPolicy(settings.blocked_terms),
        model=LoadedModel(db),
        fleet=fleet,
        outlook=Outlook(db, fleet),
        fetch_slots=threading.Semaphore(settings.api_threads // 2),
        waiting=Waiting(live, settings.api_threads, settings.api_max_waiting),
        quotas=Quotas(db, settings.redis_url.get_secret_value(), settings),
    )
