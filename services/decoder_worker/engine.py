"""
The decoder engine: token grids in, pixels out, one step of one group of pictures per turn, on a thread of its own.

Knows tensors and no jobs: no database, no queue, no store, no logs. What surrounds it hands in callables for progress, for stopping and
for what exists before the end, and gets a Future back. `policy.py` decides whose turn it is, `drawing.py` what a picture is made of,
`denoise.py` what a step is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from services.decoder_worker import vae
from services.decoder_worker.denoise import Denoising, clean_latents, step
from services.decoder_worker.drawing import Drawing, Showing, check, prepare_some
from services.decoder_worker.fast import FastParams
from services.decoder_worker.interim import Interim, LatentsSoFar, Preview, PreviewLost
from services.decoder_worker.policy import choose
from services.decoder_worker.request import ImageRequest, ImageResult, SourceInput
from services.decoder_worker.sharing import SharedResults
from services.decoder_worker.weights import DecoderModel
from shared.engine import BatchEngine, Ticket
from shared.errors import PermanentWorkError

__all__ = ["DecoderEngine", "ImageRequest", "ImageResult", "SourceInput"]

OVERDUE_SHARE = 1 / 16
"""
Of the engine, for pictures that shorter ones always pass.

Taste: alone in an endless stream of small ones, a 2048x2048 picture ends after 17 times its own work, and each of the small ones takes a
sixteenth longer.
"""

CPU_TOKEN_BUDGET = 512
"""
Patch tokens of a turn on a CPU: 32 pictures of 64 pixels square, 8 of 128, 2 of 256.

Measured on the miniature, machine shared, per picture and guided step, alone / together: 64 pixels 17 / 5 ms (16), 128 pixels 32 / 18 ms
(8); at 256 pixels two take 0.85 to 1.1 times as long each as one alone, and from there on all would wait for the last.
"""

_GPU_TOKEN_BUDGET = 4096
"""
Patch tokens of a turn on a GPU, in float32: 4 pictures of 512 pixels square, one of 1024.

Measured in bfloat16 on an H100, per picture and pass, alone / together: 42 / 11 ms at 256 pixels (4), 45 / 34 at 512 (4), 140 / 139 at 1024
(2). What is gained is the host's time, not the GPU's.
"""

_ALONE = 1
"""
Patch tokens of a turn below float32: pictures take their steps one by one.

There a product of more rows is summed in another order, and it shows: on an H100, four pictures of 512 pixels that shared a step of the
DiT each differed from themselves alone in the last bits. So did what the VAE made of four of 256.
"""

DrawingTicket = Ticket[ImageRequest, ImageResult, Interim]

Outcome = TypeVar("Outcome")


class DecoderEngine(BatchEngine[ImageRequest, ImageRequest, ImageResult, Interim]):
    """
    Draws pictures. Phases of progress are `denoise`, told after every step, and `vae`; stopping is asked before every step, source
    image and the VAE.

    A request fails with TokenGridError when its ids or sizes do not fit.
    """

    def __init__(
        self,
        model: DecoderModel,
        *,
        token_budget: int = 0,
        checkpoint_steps: int = 10,
        tile_above_pixels: int = 0,
        batch_vae: bool | None = None,
        reference_cache_bytes: int = 1 << 30,
        num_previews: int = 2,
        preview_max_px: int = 256,
        fast: FastParams | None = None,
    ) -> None:
        """
        Args:
            token_budget: most patch tokens (16x16 pixels each) of the pictures that take a step together; 0 for what suits the device
                and is exact.
            checkpoint_steps: show the latents every so many steps; at most so many are computed twice. 0: never.
            tile_above_pixels: pictures of more pixels are decoded in tiles, which changes them a little; 0: never.
            reference_cache_bytes: memory of the device for what pictures share, kept for those to come.
            batch_vae: decode pictures of one size that end together in one batch; None for what suits the device and is exact. On a CPU
                each costs as much as alone (measured), and all would wait for the last.
            num_previews: of a picture that asks for them, evenly spaced over its steps.
            preview_max_px: longest side of a preview; also at most half the picture's.
        """
        super().__init__("decoder engine", "decoder_oom")
        self._model = model
        is_cpu, is_exact_together = model.device.type == "cpu", model.dtype == torch.float32
        self._token_budget = token_budget or (_ALONE if not is_exact_together else CPU_TOKEN_BUDGET if is_cpu else _GPU_TOKEN_BUDGET)
        self._tile_above_pixels = tile_above_pixels
        self._batch_vae = is_exact_together and not is_cpu if batch_vae is None else batch_vae
        self._preview_max_px = preview_max_px
        self._fast = fast or FastParams()
        self._showing = Showing(checkpoint_steps, num_previews, self._fast.refresh_steps)
        self._drawings: dict[DrawingTicket, Drawing] = {}
        self._work_done = 0.0
        self._favoured_at = 0.0
        self.shared = SharedResults(reference_cache_bytes)

    def prepare(self, request: ImageRequest) -> ImageRequest:
        """Nothing: what a picture needs before its first step is shared with others, by the engine's thread."""
        return request

    def live(self) -> Collection[DrawingTicket]:
        """The tickets of all drawings, begun or not."""
        return self._drawings.keys()

    def drop(self, ticket: DrawingTicket) -> None:
        """Forget its drawing; what it shares stays with the others."""
        self._drawings.pop(ticket, None)

    def turn(self) -> None:
        """Take up what came; then encode one source, or move one group of pictures one step on."""
        with torch.inference_mode():
            self._turn()

    def _turn(self) -> None:
        for ticket in self.take_waiting(self.num_waiting()):
            self._admit(ticket)
        for ticket in list(self._drawings):
            self.stopped(ticket)
        if not self._drawings:
            return
        group = self._next_group()
        if self._use_lora(group) and all(self._prepare(ticket) for ticket in group):
            self._step([ticket for ticket in group if not self.stopped(ticket)])

    def _admit(self, ticket: DrawingTicket) -> None:
        try:
            drawing = check(self._model, ticket.work, self._showing, self._work_done)
            drawing.expected = [self.shared.expect("reference", key) for key in drawing.reference_keys]
            self._drawings[ticket] = drawing
        except Exception as error:  # whatever is wrong with a request is its own
            self.fail(ticket, error)

    def _next_group(self) -> list[DrawingTicket]:
        tickets = list(self._drawings)
        candidates = [drawing.candidate(self._work_done) for drawing in self._drawings.values()]
        choice = choose(candidates, self._token_budget, OVERDUE_SHARE, self._work_done - self._favoured_at)
        if choice.is_favour:
            self._favoured_at = self._work_done
        return [tickets[index] for index in choice.members]

    def _use_lora(self, group: Sequence[DrawingTicket]) -> bool:
        """Make the DiT draw with the adapters of the group, which are equal. False: it cannot, and the group has ended."""
        try:
            self._model.use_lora(group[0].work.lora)
        except Exception as error:  # whatever is wrong with an adapter, others draw without it
            for ticket in group:
                self.fail(ticket, error)
            return False
        return True

    def _prepare(self, ticket: DrawingTicket) -> bool:
        """Bring a drawing nearer to its first step. False: it failed, or encoding one of its sources took this turn."""
        drawing = self._drawings[ticket]
        if drawing.denoising is None:
            self._run([ticket], lambda _: (prepare_some(self._model, self.shared, drawing, self._fast),))
            if drawing.denoising is not None:
                self.tell(ticket, "denoise", drawing.denoising.num_done, drawing.schedule.num_steps)
        return drawing.denoising is not None and ticket in self._drawings

    def _step(self, group: Sequence[DrawingTicket]) -> None:
        pictures = {ticket: picture for ticket in group if (picture := self._drawings[ticket].denoising)}
        model = self._model

        def move(some: Sequence[DrawingTicket]) -> Sequence[Tensor]:
            together = [pictures[ticket] for ticket in some]
            velocities: Sequence[Tensor] = step(model.transformer, model.dtype, together, side_by_side=model.goes_side_by_side).split(1)
            return velocities

        moved = self._run(list(pictures), move)
        work = sum(self._drawings[ticket].step_work for ticket, _ in moved)
        self._work_done += work
        self.count_work(work)
        for ticket, velocity in moved:
            picture, drawing = pictures[ticket], self._drawings[ticket]
            drawing.moved_at = self._work_done
            if self.tell(ticket, "denoise", picture.num_done, picture.schedule.num_steps) and not picture.is_done:
                self._show(ticket, drawing, picture, velocity)
        ended = [ticket for ticket, _ in moved if pictures[ticket].is_done and ticket in self._drawings]
        for tickets in [ended] if self._batch_vae and ended else [[ticket] for ticket in ended]:
            self._end(tickets, pictures)

    def _show(self, ticket: DrawingTicket, drawing: Drawing, picture: Denoising, velocity: Tensor) -> None:
        """Hand out the latents and a preview, where they are due after this step."""
        if picture.num_done in drawing.checkpoint_at:
            latents = picture.latents[0].float().cpu().numpy()
            if not self.show(ticket, LatentsSoFar(picture.num_done, latents, drawing.digest)):
                return
        if picture.num_done in drawing.preview_at:
            self.show(ticket, self._preview(picture, velocity))

    def _preview(self, picture: Denoising, velocity: Tensor) -> Preview | PreviewLost:
        """A small picture of x0. Where it cannot be made, as when memory is short, the picture and its neighbours go on without."""
        try:
            clean = clean_latents(picture, velocity)
            max_side = min(self._preview_max_px // self._model.vae_scale_factor, max(clean.shape[-2:]) // 2)
            return Preview(picture.num_done, vae.vae_decode(self._model.vae, vae.pool_latents(clean, max_side))[0])
        except Exception as error:  # no picture is worth less for it, and a lost device is met again by the next step
            return PreviewLost(picture.num_done, repr(error))

    def _end(self, tickets: Sequence[DrawingTicket], pictures: Mapping[DrawingTicket, Denoising]) -> None:
        """Decode drawn pictures of one size and end them."""
        tickets = [ticket for ticket in tickets if not self.stopped(ticket) and self.tell(ticket, "vae", 0, 1)]
        for ticket in tickets:
            # Gone before the VAE, whose decode is the other peak of memory.
            self._drawings[ticket].release_references()

        def decode(some: Sequence[DrawingTicket]) -> list[Tensor]:
            latents = torch.cat([pictures[ticket].latents for ticket in some])
            grid = some[0].work.grid
            tiled = 0 < self._tile_above_pixels < grid.height_px * grid.width_px
            return [pixels[0] for pixels in vae.vae_decode(self._model.vae, latents, tiled=tiled).split(1)]

        for ticket, pixels in self._run(tickets, decode):
            if not pixels.isfinite().all():
                # It would again; and a picture of nothing is none.
                self.fail(ticket, PermanentWorkError("decoder_overflow", "the decoder's numbers overflowed; a scale may be too large"))
            elif self.tell(ticket, "vae", 1, 1):
                self.finish(ticket, ImageResult(pixels, pictures[ticket].num_taken, self._drawings[ticket].num_encoded))

    def _run(
        self, tickets: Sequence[DrawingTicket], work: Callable[[Sequence[DrawingTicket]], Sequence[Outcome]]
    ) -> list[tuple[DrawingTicket, Outcome]]:
        """
        Do work for several tickets at once; those for which it failed have ended.

        What fails together is tried one by one, with nothing kept for later in memory, so that a picture which is too large fails alone
        and the others go on. Suppressed only once: a lost device fails the second try too.
        """
        if not tickets:
            return []
        with contextlib.suppress(Exception):
            return list(zip(tickets, work(tickets), strict=True))
        self.shared.clear()
        outcomes: list[tuple[DrawingTicket, Outcome]] = []
        for ticket in tickets:
            try:
                outcomes += zip([ticket], work([ticket]), strict=True)
            except Exception as error:  # it belongs to this picture, and the engine goes on
                self.fail(ticket, error)
        return outcomes
