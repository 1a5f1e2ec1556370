"""
What a decision costs with a million units ready in Postgres: the whole of `work.release` with the dispatcher's own order, on real rows.

The rows are grids of many tenants in all lanes, made by one INSERT; a unit that was released is put back, so that every decision meets the
same line.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import text

from infra.bench.figures import Figure
from infra.embedded.find import postgres_programs
from infra.embedded.memory import Memory
from infra.embedded.postgres import PostgresServer
from infra.migrate import migrate_database
from services.dispatcher.policy import Rules
from services.dispatcher.release import FairOrder
from shared.db import Database
from shared.lifecycle import work
from shared.lifecycle.tenants import ensure_tenant
from shared.states import Stage

_NUM_READY = 1_000_000
_NUM_TENANTS = 20
_DECISIONS = 100
_WARM_UP = 10
_PASSABLE = 0o711
"""Root's Postgres runs as nobody, who must be able to pass through."""

_MAKE = """
    INSERT INTO grid (id, tenant_id, prompt, token_h, token_w, seed, temperature, top_p, source_file_ids, model_revision, state, lane,
                      cost_s, created_at, not_before)
    SELECT 'tok_' || number, (CAST(:tenants AS text[]))[1 + number % :num_tenants], 'A cat', 32, 32, number, 0.9, 0.75, '{}', 'r1', 'ready',
           number % 3,
           (ARRAY[1.0, 4.4, 25.0])[1 + (number / 7) % 3], now() - number * interval '10 ms', now() - interval '1 day'
    FROM generate_series(1, :num_ready) AS number
"""
_PUT_BACK = "UPDATE grid SET state = 'ready', released_at = NULL WHERE state = 'released'"


def figures() -> list[Figure]:
    """With a million units ready, of twenty tenants in three lanes and three sizes; and with a few, all of which fit."""
    with _ledger() as db:
        fitting = _decisions_ms(db, room=10, num_ready=4)
        crowded = _decisions_ms(db, room=2, num_ready=_NUM_READY)
    told = f"{_DECISIONS} decisions"
    return [
        Figure(
            f"a release decision, {_NUM_READY:,} ready",
            crowded,
            unit="ms",
            note=f"{told}, room for 2; {_NUM_TENANTS} tenants, 3 lanes, 3 sizes",
        ),
        Figure("a release, 4 ready and room for 10", fitting, unit="ms", note=f"{told}; nothing to choose, one statement"),
    ]


def _decisions_ms(db: Database, room: int, num_ready: int) -> list[float]:
    tenants = [ensure_tenant(db, f"tenant {number}", b"sealed") for number in range(_NUM_TENANTS)]

    def make() -> None:
        with db.engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("DELETE FROM grid"))
            connection.execute(text(_MAKE), {"tenants": tenants, "num_tenants": _NUM_TENANTS, "num_ready": num_ready})
        with db.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("VACUUM ANALYZE grid"))
            connection.execute(text("RESET statement_timeout"))

    make()
    order = FairOrder(Rules())
    taken_ms = []
    for _ in range(_WARM_UP + _DECISIONS):
        started = time.perf_counter()
        released = work.release(db, Stage.AR, room, order=order)
        taken_ms.append(1e3 * (time.perf_counter() - started))
        if len(released) != min(room, num_ready):
            raise RuntimeError(f"{len(released)} of {min(room, num_ready)} units were released")
        db.run(lambda session: session.execute(text(_PUT_BACK)))
    return taken_ms[_WARM_UP:]


@contextmanager
def _ledger() -> Iterator[Database]:
    with tempfile.TemporaryDirectory(prefix="glmq-bench-") as name:
        folder = Path(name)
        folder.chmod(_PASSABLE)
        server = PostgresServer(folder / "postgres", Memory(folder / "memory.json"), folder / "postgres.log", postgres_programs())
        server.start()
        try:
            migrate_database(server.url())
            db = Database(server.url())
            yield db
            db.close()
        finally:
            server.stop()
