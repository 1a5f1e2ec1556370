"""One page of a list by time of creation, from behind a row that its reader has seen. Knows no kind of row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, select, tuple_
from sqlalchemy.orm import Session

from shared.errors import RequestError


@dataclass(frozen=True)
class Page:
    """
    Which page.

    Attributes:
        limit: rows on it.
        after: id of the last row of the page before it; None: the first page.
    """

    limit: int
    after: str | None = None
    newest_first: bool = True


def read_page(
    session: Session, query: Select[*tuple[Any, ...]], row: Any, page: Page, what: str, *owned: ColumnElement[bool]
) -> tuple[Sequence[Any], bool]:
    """
    Rows of the query, and whether more follow.

    Args:
        row: the table whose `created_at` and `id` order it.
        what: names such a row to the reader.
        owned: whose the row of the cursor has to be. It may have gone from the list meanwhile: who deletes what a page shows can ask for
            the next one.
    Raises:
        RequestError: the cursor is no such row.
    """
    position = (row.created_at, row.id)
    if page.after is not None:
        cursor = session.execute(select(*position).where(row.id == page.after, *owned)).one_or_none()
        if cursor is None:
            raise RequestError("invalid_request", f"after: names no {what}", "after")
        query = query.where(tuple_(*position) < tuple(cursor) if page.newest_first else tuple_(*position) > tuple(cursor))
    order = [column.desc() if page.newest_first else column.asc() for column in position]
    rows = session.execute(query.order_by(*order).limit(page.limit + 1)).all()
    return rows[: page.limit], len(rows) > page.limit
