"""
What stands in a picture: RapidOCR's detection and recognition, its boxes put together to lines.

Tuned for small pictures: RapidOCR's default enlarges every picture to 736 px, which takes ten times as long. Pictures go in as they
are: of the reference renders, 99.8 % of the words in up to three lines are read right, and neither twice the size nor a margin adds one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidocr import RapidOCR
from rapidocr.utils.output import RapidOCROutput

from checkpoints.train.posters import CELL_PX, Bytes


@dataclass(frozen=True)
class Line:
    """A line of text and the box around it, in pixels."""

    text: str
    top: float
    bottom: float
    left: float
    right: float

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


class Reader:
    """RapidOCR on one thread. The weights come with the package."""

    def __init__(self) -> None:
        self._ocr = RapidOCR(
            params={
                "Det.limit_type": "max",
                "Det.limit_side_len": 736,
                "Global.use_cls": False,
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def read(self, pixels: Bytes) -> list[Line]:
        """The lines of a picture (H, W, 3), RGB, from the top."""
        found = self._ocr(np.ascontiguousarray(pixels[..., ::-1]))  # BGR, as OpenCV reads files
        assert isinstance(found, RapidOCROutput)  # noqa: S101 - for mypy: the other outputs are of single stages
        boxes = [] if found.boxes is None else [np.asarray(box, np.float64) for box in found.boxes]
        pieces = [
            Line(text, float(box[:, 1].min()), float(box[:, 1].max()), float(box[:, 0].min()), float(box[:, 0].max()))
            for box, text in zip(boxes, found.txts or (), strict=True)
        ]
        return joined(pieces)


def joined(pieces: Sequence[Line]) -> list[Line]:
    """Lines from pieces in any order: pieces whose middles are less than half a cell apart stand side by side."""
    rows: list[list[Line]] = []
    for piece in sorted(pieces, key=lambda piece: piece.middle):
        if rows and piece.middle - rows[-1][0].middle < CELL_PX / 2:
            rows[-1].append(piece)
        else:
            rows.append([piece])
    lines = []
    for row in rows:
        row.sort(key=lambda piece: piece.left)
        text = tidy(" ".join(piece.text for piece in row))
        box = min(p.top for p in row), max(p.bottom for p in row), min(p.left for p in row), max(p.right for p in row)
        if text:
            lines.append(Line(text, *box))
    return lines


def tidy(text: str) -> str:
    """
    The text as this evaluation compares it: wide forms and curly apostrophes as plain ones, single spaces, marks beside their word.

    In a monospace font a full stop stands far from its letter, and the reader often reports a space there.
    """
    text = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'")
    return re.sub(r"\s+(?=[.,!?:;](?:\s|[.,!?:;]|$))", "", " ".join(text.split()))
