"""
Work that several jobs share: the key of a grid or an image, and the unit that has it, new or found.

A key covers everything that decides the bytes of a result, within one tenant; a unit without a key is never found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.grid import TokenGrid
from shared.ids import new_id
from shared.lora import Lora, lora_to_json
from shared.states import LIVE_WORK, WorkState
from shared.tables import Grid, Image, Output

MAX_SHARING = 128
"""
Jobs that may wait for one unit. More equal ones begin another unit, which then is found in its place.

Each end or start of a unit writes an event for every job that waits, in one transaction that holds the tenant's row: for 128 jobs that
takes about as long as a submit may wait for it.
"""


class Cache(StrEnum):
    """Whether a job may have what was made for another one of its tenant."""

    USE = "use"
    """Takes what is done or under way, and leaves its own to be found."""

    REFRESH = "refresh"
    """Draws everything anew, to be found in place of what was there."""

    OFF = "off"
    """Draws everything anew, and nobody finds it."""


@dataclass(frozen=True)
class Found:
    """A unit of work that a job may have."""

    id: str
    state: str
    is_new: bool = False


@dataclass(frozen=True, kw_only=True)
class FoundImage(Found):
    """An image that a job may have, and the grid it is drawn from."""

    grid_id: str


def grid_key(
    prompt: str,
    grid: TokenGrid,
    seed: int,
    temperature: float,
    top_p: float,
    source_hashes: Sequence[str],
    model_revision: str,
    lora: Lora = (),
    salt: str = "",
    glyph_texts: Sequence[str] | None = None,
) -> str:
    """
    What decides the tokens of a grid and the texts in its pictures, as a hash.

    Args:
        glyph_texts: where they are not what the reference's parser finds in the prompt.
        salt: makes the key that of one job alone.
    """
    identity: list[Any] = [prompt, grid.token_h, grid.token_w, seed, temperature, top_p, list(source_hashes), model_revision]
    # Only where there are any, so that grids of before adapters and approval are still found.
    if lora or salt:
        identity += [lora_to_json(lora), salt]
    if glyph_texts is not None:
        identity.append({"glyph_texts": list(glyph_texts)})
    return _digest(identity)


def image_key(
    key_of_grid: str,
    seed: int,
    steps: int,
    guidance_scale: float,
    height_px: int,
    width_px: int,
    format: str,
    quality: int | None,
    is_fast: bool,
    max_bytes: int | None = None,
    renditions: Sequence[dict[str, Any]] = (),
) -> str:
    """What decides the files of an image, as a hash. Adapters, prompt and sources are in the grid's key."""
    identity: list[Any] = [key_of_grid, seed, steps, guidance_scale, height_px, width_px, format, quality, is_fast]
    # Only where there are any, so that images of before them are still found.
    if max_bytes is not None or renditions:
        identity += [max_bytes, list(renditions)]
    return _digest(identity)


def _digest(identity: list[Any]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def find_image(session: Session, tenant_id: str, key: str) -> FoundImage | None:
    """The image with this key, done or with room for one more job. Not locked: one that is done never changes, another one may end."""
    found = session.execute(
        select(Image.id, Image.state, Image.grid_id).where(Image.tenant_id == tenant_id, Image.key == key, _is_alive(Image))
    ).one_or_none()
    if found is None or (found.state in LIVE_WORK and _num_waiting(session, Image, found.id) >= MAX_SHARING):
        return None
    return FoundImage(found.id, found.state, grid_id=found.grid_id)


def is_kept(session: Session, image_id: str) -> bool:
    """Is the image still there? Then it stays until the transaction ends, whoever erases jobs."""
    kept = select(Image.id).where(Image.id == image_id).with_for_update(read=True, key_share=True)
    return session.scalar(kept) is not None


def lock_alive(session: Session, row: type[Grid] | type[Image], unit_id: str, lane: int, deadline: datetime | None) -> Found | None:
    """A unit that has neither failed nor been canceled, locked; an urgent lane and an early deadline hold for it."""
    return _lock(session, row, lane, deadline, row.id == unit_id)


def find_alive(
    session: Session, row: type[Grid] | type[Image], tenant_id: str, key: str | None, lane: int, deadline: datetime | None
) -> Found | None:
    """The unit with this key that is done, or has room for one more job; locked, and an urgent lane and an early deadline hold for it."""
    if key is None:
        return None
    found = _lock(session, row, lane, deadline, row.tenant_id == tenant_id, row.key == key)
    if found is not None and found.state in LIVE_WORK and _num_waiting(session, row, found.id) >= MAX_SHARING:
        # It is not found any more, and whoever asked may have the key.
        session.execute(update(row).where(row.id == found.id).values(key=None))
        return None
    return found


def find_or_add(session: Session, row: type[Grid] | type[Image], values: dict[str, Any], cache: Cache) -> Found:
    """
    The unit with this key, whoever asked first; locked, so that it cannot end before the job that wants it is written.

    Args:
        values: columns of the unit that is added if there is none, among them `tenant_id`, `key`, `state`, `lane` and `deadline`. An urgent
            lane and an early deadline hold for a unit that is found too.
    """
    tenant_id, key, lane, deadline = values["tenant_id"], values["key"], values["lane"], values["deadline"]
    while True:
        if key is not None and cache is Cache.REFRESH:
            _give_up_key(session, row, tenant_id, key)
        added = session.scalar(
            insert(row)
            .values(id=new_id("tok" if row is Grid else "img"), **values)
            # The condition as the index has it, in letters: Postgres cannot match parameters of a prepared statement to it.
            .on_conflict_do_nothing(index_elements=[row.tenant_id, row.key], index_where=text("state NOT IN ('failed', 'canceled')"))
            .returning(row.id)
        )
        if added is not None:
            return Found(added, values["state"], is_new=True)
        if cache is Cache.REFRESH:
            # Another refresh came between the two statements; the later one wins.
            continue
        found = find_alive(session, row, tenant_id, key, lane, deadline)
        if found is not None:
            return found
        # The other holder of the key ended between the two statements, or was full: the key is free again.


def _lock(
    session: Session, row: type[Grid] | type[Image], lane: int, deadline: datetime | None, *which: ColumnElement[bool]
) -> Found | None:
    # A deadline that has passed is that of a job which is over.
    still_due = case((row.deadline > func.clock_timestamp(), row.deadline)).label("still_due")
    found = session.execute(select(row.id, row.state, row.lane, still_due).where(*which, _is_alive(row)).with_for_update()).one_or_none()
    if found is None:
        return None
    changes: dict[str, Any] = {}
    if found.lane > lane:
        changes["lane"] = lane
    if deadline is not None and (found.still_due is None or found.still_due > deadline):
        changes["deadline"] = deadline
    if changes:
        session.execute(update(row).where(row.id == found.id).values(changes))
    return Found(found.id, found.state)


def _num_waiting(session: Session, row: type[Grid] | type[Image], unit_id: str) -> int:
    """Outputs that are to be drawn from a unit, counted up to `MAX_SHARING`."""
    unit = Image.grid_id if row is Grid else Image.id
    waiting = select(Output.job_id).join(Image, Image.id == Output.image_id).where(unit == unit_id, Image.state.in_(LIVE_WORK))
    return session.scalar(select(func.count()).select_from(waiting.limit(MAX_SHARING).subquery())) or 0


def _give_up_key(session: Session, row: type[Grid] | type[Image], tenant_id: str, key: str) -> None:
    """Whoever has this key is not found any more, nor are the images of a grid that has it."""
    holder = update(row).where(row.tenant_id == tenant_id, row.key == key, _is_alive(row))
    former = list(session.scalars(holder.values(key=None).returning(row.id)))
    if former and row is Grid:
        session.execute(update(Image).where(Image.grid_id.in_(former)).values(key=None))


def _is_alive(row: type[Grid] | type[Image]) -> ColumnElement[bool]:
    return row.state.not_in([WorkState.FAILED, WorkState.CANCELED])
