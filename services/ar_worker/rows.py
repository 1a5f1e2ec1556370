"""A request on its way through the AR engine: its prompt read, then live in a slot. Knows neither turns nor neighbours."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from services.ar_worker.prefill import Prefix
from services.ar_worker.prompt import ArPrompt
from services.ar_worker.requests import GridRequest, GridResult, WrittenTokens
from services.ar_worker.sampling import TokenSampler
from shared.engine import Ticket


@dataclass(frozen=True)
class PreparedGrid:
    """
    A request whose prompt was read.

    Attributes:
        prompt: in host memory.
        key: see `GridRequest.prefix_key`.
    """

    request: GridRequest
    prompt: ArPrompt
    key: Hashable


GridTicket = Ticket[PreparedGrid, GridResult, WrittenTokens]


@dataclass(eq=False)
class Row:
    """
    A live request.

    Attributes:
        start: ids of its prompt; ids to be written follow in its slot.
        count: ids written so far, of `num_ids`.
    """

    ticket: GridTicket
    sampler: TokenSampler
    prefix: Prefix = field(init=False)
    start: int = 0
    count: int = 0

    @property
    def request(self) -> GridRequest:
        return self.ticket.work.request

    @property
    def end(self) -> int:
        """Positions that its ids take so far; between a draw and the step, the last has no keys and values yet."""
        return self.start + self.count
