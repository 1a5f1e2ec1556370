"""What the AR engine is asked for, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field

from PIL import Image

from shared.errors import PermanentWorkError
from shared.grid import TokenGrid
from shared.lora import Lora


@dataclass(frozen=True)
class GridRequest:
    """
    Everything that decides a token grid.

    Attributes:
        sources: RGB images with sides of whole tokens (32 pixels), in the checkpoint's range; with any of them no draft is written.
        lora: adapters, see `shared/lora.py`.
        written: ids that an earlier attempt wrote, draft first: the engine goes on behind them and ends with the same grid. Ids that
            no attempt at this request can have written are ignored.
        draft_only: end with the draft, which only text-to-image has.
    """

    prompt: str
    grid: TokenGrid
    seed: int
    temperature: float
    top_p: float
    sources: tuple[Image.Image, ...] = ()
    lora: Lora = ()
    written: tuple[int, ...] = ()
    draft_only: bool = False

    @property
    def num_draft(self) -> int:
        """Ids of the draft grid, which is written first."""
        return self.grid.num_draft_tokens(len(self.sources))

    @property
    def num_ids(self) -> int:
        """
        Ids to be written.

        Raises:
            PermanentWorkError: only a draft is wanted, and there is none.
        """
        if self.draft_only and self.sources:
            raise PermanentWorkError("invalid_request", "draft_only: an image made from source images has no draft")
        return self.num_draft if self.draft_only else self.num_draft + self.grid.num_tokens

    def usable_written(self, codebook_size: int) -> tuple[int, ...]:
        """`written`, if an earlier attempt can have written it, as far as it is wanted."""
        if len(self.written) > self.num_draft + self.grid.num_tokens or not all(0 <= i < codebook_size for i in self.written):
            # They are only a saving: without them the grid is the same.
            return ()
        return self.written[: self.num_ids]

    def prefix_key(self) -> Hashable:
        """Requests with equal keys show the net the same prompt, and differ in sampling only."""
        sources = tuple((source.size, hashlib.sha256(source.tobytes()).digest()) for source in self.sources)
        return self.prompt, self.grid, sources, self.lora


@dataclass(frozen=True)
class GridResult:
    """
    Attributes:
        token_ids: token_h rows of token_w ids; empty if only the draft was wanted.
        source_token_ids: the same of each source image, one id per 32x32 pixels.
        num_prompt_tokens: that the net read, those of source images among them.
    """

    token_ids: list[list[int]]
    source_token_ids: tuple[list[list[int]], ...]
    num_prompt_tokens: int = field(compare=False)

    @property
    def num_source_tokens(self) -> int:
        """Tokens of the prompt that are source images."""
        return sum(len(row) for grid in self.source_token_ids for row in grid)


@dataclass(frozen=True)
class WrittenTokens:
    """All ids written so far, draft first. `GridRequest.written` takes them."""

    token_ids: tuple[int, ...]
