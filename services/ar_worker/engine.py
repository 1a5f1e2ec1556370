"""
The AR engine: prompts in, token grids out, many at once, on a thread of its own.

Knows tensors and no jobs: no database, no queue, no store, no logs. What surrounds it hands in callables for progress, for stopping
and for ids to keep, and gets a Future back. Every turn admits waiting requests by reading their prompts into free slots, draws one id
for every live row, lets go those that are full, and runs one decode step for the rest. A request's length is known before it
starts, so no slot waits for another.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from services.ar_worker.decode_step import DecodeStep
from services.ar_worker.kv_cache import SlotCache
from services.ar_worker.layers import TextNet
from services.ar_worker.prefill import check_length, prefill, tokenize_sources
from services.ar_worker.prompt import ArPrompt, build_prompt
from services.ar_worker.race import Race
from services.ar_worker.requests import GridRequest, GridResult, WrittenTokens
from services.ar_worker.room import cache_shape, choose_room
from services.ar_worker.rows import GridTicket, PreparedGrid, Row
from services.ar_worker.sampling import TokenSampler, no_numbers
from services.ar_worker.settings import CompileMode
from services.ar_worker.slots import SlotTable
from services.ar_worker.weights import ArModel
from shared.engine import BatchEngine
from shared.lora import Lora

__all__ = ["ArEngine", "GridRequest", "GridResult", "WrittenTokens"]

SHOW_EVERY = 256
"""Ids between two showings of what is written: what a successor computes twice at most. A 1024x1024 picture is shown five times."""

PREFILL_TOKENS_PER_TURN = 1024
"""
Prompt ids after which a turn admits no further request, so that those who write are not held up by those who come.

On an H100 such a prompt takes as long as some seven decode steps; beside a slow host hardly less if it is short. One request is always
admitted, however long.
"""


class ArEngine(BatchEngine[GridRequest, PreparedGrid, GridResult, WrittenTokens]):
    """
    Writes grids. Phases of progress are `draft` and `grid`, told after every token; stopping is asked before every one.

    A request's ids are those it gets alone. It fails with PermanentWorkError when its prompt or sources cannot be used, are too
    long for a slot, or make the model's numbers overflow. What is written is shown every `show_every` ids, and when the draft is complete.
    """

    def __init__(
        self,
        model: ArModel,
        slots: int = 8,
        cache_tokens: int | None = None,
        compile_mode: CompileMode = "off",
        compiler: str = "inductor",
        show_every: int = SHOW_EVERY,
        prefill_tokens_per_turn: int = PREFILL_TOKENS_PER_TURN,
    ) -> None:
        """
        Args:
            slots: requests served at once.
            cache_tokens: longest request, prompt and written ids together; None for what fits into memory.
            compile_mode: see `settings.CompileMode`.
            compiler: torch.compile's backend, where it is used.
        """
        super().__init__("AR engine", "ar_oom")
        self._model = model
        self._show_every = show_every
        self._prefill_tokens_per_turn = prefill_tokens_per_turn
        room = choose_room(model, slots, cache_tokens or 0)
        self._cache = SlotCache(slots, room.cache_tokens, *cache_shape(model), model.device, model.dtype)
        # Not in inference mode: the end of a ticket moves rows, and a ticket may end outside a turn.
        self._net = TextNet(model, model.codebook_size)
        self._step = DecodeStep(self._net, self._cache, compile_mode, compiler)
        self._race = Race(model.rules, model.codebook_size, slots)
        self._table: SlotTable[Row] = SlotTable(slots, self._move, self._step.part, lambda row: row.end)
        self._rows: dict[GridTicket, Row] = {}
        # Requests that differ in their seeds alone come together, so one prompt does for all that are on their way.
        self._prompts: WeakValueDictionary[Hashable, ArPrompt] = WeakValueDictionary()
        # Tokenizers are no friends of several threads.
        self._preparing = threading.Lock()
        self._lora: Lora | None = ()
        self._has_changed = False
        self.num_prefills = 0

    def prepare(self, request: GridRequest) -> PreparedGrid:
        """Hash and resize source images, render and tokenise: milliseconds for which every slot would stand still."""
        key = request.prefix_key()
        with self._preparing:
            prompt = self._prompts.get(key)
            if prompt is None:
                self._prompts[key] = prompt = build_prompt(self._model, request.prompt, request.grid, request.sources)
        check_length(prompt, request, self._cache.capacity)
        return PreparedGrid(request, prompt, key)

    def live(self) -> Collection[GridTicket]:
        """The tickets whose rows are in the table."""
        return self._rows.keys()

    def drop(self, ticket: GridTicket) -> None:
        """Free the slot."""
        if (row := self._rows.pop(ticket, None)) is not None:
            self._table.remove(row)
            self._has_changed = True

    def turn(self) -> None:
        """Admit, draw, let go, step; and while a GPU takes the step, tell and look ahead."""
        with torch.inference_mode():
            for ticket in list(self._rows):
                self.stopped(ticket)
            self._admit()
            if not self._rows:
                return
            drawn = self._draw()
            self._run_step()
            for row in drawn:
                if row.ticket in self._rows:
                    self._tell(row)
            if self._model.device.type != "cpu" and self._rows and not self._has_changed:
                self._race.look_ahead()

    def _admit(self) -> None:
        """Read prompts into free slots, the oldest first."""
        left = self._prefill_tokens_per_turn
        while left > 0 and self._table.num_free and (tickets := self.take_waiting(1)):
            ticket = tickets[0]
            try:
                left -= self._begin(ticket)
            except Exception as error:  # whatever it is, it belongs to this request alone
                self.fail(ticket, error)

    def _begin(self, ticket: GridTicket) -> int:
        """Take a request up; returns how many ids were read for it."""
        prepared, model = ticket.work, self._model
        request = prepared.request
        sampler = TokenSampler(model.rules, request.temperature, request.top_p, request.seed)
        written = request.usable_written(model.codebook_size)
        twin = next((row for row in self._table.rows if row.ticket.work.key == prepared.key), None)
        prompt = twin.prefix.prompt if twin else prepared.prompt.to(model.device)
        if len(written) == request.num_ids:
            source_ids = twin.prefix.source_ids if twin else tokenize_sources(model, prompt)
            self.finish(ticket, self._result(request, torch.tensor(written), source_ids, prompt.input_ids.shape[1]))
            return 0
        self._use_lora(request.lora)
        row = Row(ticket, sampler)
        self._rows[ticket] = row
        self._has_changed = True
        slot = self._table.insert(row, request.lora)
        self._cache.take(slot, prompt.input_ids.shape[1] + request.num_ids)
        if twin:
            row.prefix, num_read = twin.prefix, 0
            self._cache.copy_prefix(self._table.rows.index(twin), slot, twin.start)
        else:
            row.prefix = prefill(model, self._net, prompt, self._cache, slot)
            num_read = row.prefix.num_ids
            self.num_prefills += 1
        row.start = row.prefix.num_ids
        self._cache.rotary[slot, row.start : row.start + request.num_ids] = row.prefix.rotary[: request.num_ids]
        logits = row.prefix.logits
        if written:
            logits = self._read_written(row, slot, written)
            num_read += len(written)
        row.count = len(written)
        self._cache.lengths[slot] = row.start + row.count
        self._step.logits[slot] = logits
        self.stopped(ticket)
        return num_read

    def _read_written(self, row: Row, slot: int, written: tuple[int, ...]) -> Tensor:
        """Bring a row to where an earlier attempt was; returns the logits of its next id."""
        ids = torch.tensor(written, device=self._model.device)
        self._cache.ids[slot, row.start : row.start + len(written)] = ids
        if not row.sampler.is_greedy:
            self._race.noise.skip(len(written), row.sampler.generator)
        return self._step.read(slot, row.start, len(written))

    def _draw(self) -> list[Row]:
        """Draw an id for every row, and let go those that have all of theirs; returns the others, of whose ids nobody was told yet."""
        if self._has_changed:
            self._race.enter([row.sampler for row in self._table.rows])
            self._has_changed = False
        rows = list(self._table.rows)
        n, cache = len(rows), self._cache
        ids, errors = self._next_ids(rows)
        cache.ids[:n].scatter_(1, cache.lengths[:n, None], ids[:, None])
        self.count_work(n)
        for row in rows:  # before any of them leaves and makes others move
            row.count += 1
        for row in rows:
            if (error := errors.get(row)) is not None:
                self.fail(row.ticket, error)
            elif row.count == row.request.num_ids:
                self._tell(row)
        return [row for row in rows if row.ticket in self._rows]

    def _next_ids(self, rows: list[Row]) -> tuple[Tensor, dict[Row, Exception]]:
        """Draw [n] ids; rows that get none are told with why."""
        logits = self._step.logits[: len(rows)]
        try:
            return self._race.draw(logits), {rows[i]: no_numbers() for i in self._race.broken}
        except Exception:  # such as memory that all rows together lack: each row's own sampler draws the same ids
            errors: dict[Row, Exception] = {}
        ids = torch.zeros(len(rows), dtype=torch.int64, device=self._model.device)
        for i, row in enumerate(rows):
            try:
                ids[i] = row.sampler.draw(logits[i : i + 1])[0]
            except Exception as error:  # it belongs to this row
                errors[row] = error
        return ids, errors

    def _tell(self, row: Row) -> None:
        request, count = row.request, row.count
        num_draft, num_ids = request.num_draft, request.num_ids
        if count <= num_draft:
            told = self.tell(row.ticket, "draft", count, num_draft)
        else:
            told = self.tell(row.ticket, "grid", count - num_draft, num_ids - num_draft)
        if not told:
            return
        is_shown = count % self._show_every == 0 or count == num_draft
        if is_shown and not self.show(row.ticket, WrittenTokens(tuple(self._written(row).tolist()))):
            return
        if count == num_ids:
            self.finish(row.ticket, self._result(request, self._written(row), row.prefix.source_ids, row.prefix.num_ids))

    def _run_step(self) -> None:
        """Run the ids just drawn; the groups of different adapters one after another."""
        failed = [failure for span in self._table.spans() for failure in self._step_rows(span.start, span.stop)]
        # Only now: who leaves makes others move.
        for row, error in failed:
            self.fail(row.ticket, error)

    def _step_rows(self, start: int, stop: int) -> list[tuple[Row, Exception]]:
        """
        Run the slots `start` to `stop` (exclusive), which have the same adapters; returns the rows for which that fails.

        What fails together is tried by halves, so that rows which are too many for memory go on, and one at fault fails alone.
        """
        rows = self._table.rows[start:stop]
        lora = rows[0].request.lora
        lengths = [row.end - 1 for row in rows]
        try:
            self._use_lora(lora)
            self._step(start, stop, lengths, is_bare=not lora)
        except Exception as error:  # whatever it is, rows of other adapters go on
            if len(rows) == 1:
                return [(rows[0], error)]
        else:
            return []
        middle = (start + stop) // 2
        return [*self._step_rows(start, middle), *self._step_rows(middle, stop)]

    def _written(self, row: Row) -> Tensor:
        return self._cache.ids[self._table.rows.index(row), row.start : row.start + row.count]

    def _result(self, request: GridRequest, ids: Tensor, source_ids: list[Tensor], num_prompt: int) -> GridResult:
        grid = request.grid
        token_ids = [] if request.draft_only else ids[request.num_draft :].view(grid.token_h, grid.token_w).tolist()
        return GridResult(token_ids, tuple(part.tolist() for part in source_ids), num_prompt)

    def _move(self, source: int, target: int) -> None:
        row = self._table.rows[source]
        self._cache.move(source, target, row.end, row.start + row.request.num_ids)
        self._step.logits[target] = self._step.logits[source]

    def _use_lora(self, lora: Lora) -> None:
        """Have the net work with these adapters."""
        if lora != self._lora:
            # Unknown until all is done: what fails on the way is done again, whichever adapters come next.
            self._lora = None
            self._model.use_lora(lora)
            self._net.read_layers()
            self._lora = lora
