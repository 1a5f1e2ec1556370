"""
Work that is released by the statement that makes it ready: while nothing waits and a worker has a free slot, there is nothing to choose.

The dispatcher, who chooses, would only say so two wake-ups and a commit later. What is released here goes without a message: a ring
wakes the workers, and who missed it asks Postgres.
"""

from __future__ import annotations

from shared.lifecycle.candidates import TABLES
from shared.lifecycle.workers import ALIVE_S
from shared.states import Stage

RING_UP_TO_SLOTS = 256
"""
Stages of more slots are left to Celery's messages. A ring is heard ten times sooner, since Celery listens again only up to a second after
its slots were full; but a ring wakes every worker, and of hundreds that are idle all but one would ask Postgres in vain.
"""


def is_free(stage: Stage, num_units: str) -> str:
    """
    SQL: do so many new units of a stage find nothing waiting and as many free slots?

    What others make ready at this moment is not seen, so together they may be released a few too many: those wait for a slot as what the
    dispatcher has released does.
    """
    table = TABLES[stage]
    # In this order: with a million waiting it is one look at an index.
    return f"""
        CASE WHEN EXISTS (SELECT FROM {table} WHERE state = 'ready' AND not_before <= clock_timestamp()) THEN false
        ELSE (SELECT count(*) FROM {table} WHERE state = 'released') + (SELECT count(*) FROM {table} WHERE state = 'running') + {num_units}
            <= (
                SELECT CASE WHEN sum(slots) <= {RING_UP_TO_SLOTS} THEN sum(slots) ELSE 0 END FROM worker
                WHERE stage = '{stage}' AND stopped_at IS NULL AND seen_at > clock_timestamp() - interval '{ALIVE_S} s'
            )
        END
    """  # noqa: S608 - our own names
