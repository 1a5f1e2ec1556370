"""
Writes the tables of docs/gpu.md from `gpu_arithmetic.py`; the words between them are written by hand.

`python -m infra.gpu_doc` writes them anew, `--check` only says whether they are current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from infra.gpu_arithmetic import (
    CONTEXT_BYTES,
    DIT_BYTES_PER_PATCH,
    GB,
    IDEAL,
    REACHED,
    REFERENCE_CACHE_BYTES,
    VAE_BYTES_PER_PX,
    ar_bytes,
    ar_image_s,
    decoder_bytes,
    decoder_image_s,
    decoder_step_flops,
    decoder_work_bytes,
    decoders_per_ar,
    kv_bytes,
    num_ar_tokens,
    num_patches,
    reference_bytes,
    slots_that_fit,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"

SIDES_PX = (512, 1024, 1536, 2048)


def tables() -> dict[str, str]:
    """The tables of the page, by name."""
    return {
        "weights": _table(
            ("weights on the GPU, GB", "bf16", "int8 or fp8", "bf16, offload `idle`", "8 bits, offload `idle`", "bf16, offload `all`"),
            _weight_rows(),
        ),
        "ar": _table(
            (
                "size",
                "tokens",
                "KV of a slot, MB",
                "KV of 16 / 64 slots, GB",
                "slots on 24 GB, bf16 / 8 bits",
                "slots on 80 GB, bf16 / 8 bits",
            ),
            (
                (
                    _size(side),
                    f"{num_ar_tokens(side):,}",
                    f"{kv_bytes(side) / 1e6:.0f}",
                    " / ".join(f"{slots * kv_bytes(side) / GB:.1f}" for slots in (16, 64)),
                    " / ".join(str(slots_that_fit(24, side, eight_bit=eight_bit)) for eight_bit in (False, True)),
                    " / ".join(str(slots_that_fit(80, side, eight_bit=eight_bit)) for eight_bit in (False, True)),
                )
                for side in SIDES_PX
            ),
        ),
        "decoder": _table(
            (
                "size",
                "patches",
                "denoising, GB",
                "VAE, GB",
                "one source of this size, GB",
                "in all: bf16",
                "8 bits",
                "offload `idle`",
                "offload `all`",
            ),
            (_decoder_row(side) for side in SIDES_PX),
        ),
        "ratio": _table(
            (
                "size",
                "AR s, 1 slot",
                "AR pictures/s at 1 / 16 / 64 slots",
                "TFLOP per step",
                "decoder s, at peak / as reached",
                "decoders per AR GPU, ideal, 1 / 16 / 64 slots",
                "the same as reached",
            ),
            (_ratio_row(side) for side in SIDES_PX),
        ),
    }


def _weight_rows() -> Iterator[tuple[str, ...]]:
    for name, weigh, has_all in (("AR worker", ar_bytes, False), ("decoder worker", decoder_bytes, True)):
        cells = [weigh(), weigh(eight_bit=True), weigh(offload="idle"), weigh(eight_bit=True, offload="idle")]
        yield name, *(f"{cell / GB:.1f}" for cell in cells), f"{weigh(offload='all') / GB:.1f}" if has_all else "–"


def _decoder_row(side: int) -> tuple[str, ...]:
    work = decoder_work_bytes(side) + CONTEXT_BYTES + REFERENCE_CACHE_BYTES
    weights = (decoder_bytes(), decoder_bytes(eight_bit=True), decoder_bytes(offload="idle"), decoder_bytes(offload="all"))
    return (
        _size(side),
        f"{num_patches(side):,}",
        f"{DIT_BYTES_PER_PATCH * num_patches(side) / GB:.1f}",
        f"{VAE_BYTES_PER_PX * side**2 / GB:.1f}",
        f"{reference_bytes(side) / GB:.1f}",
        *(f"{(weight + work) / GB:.0f}" for weight in weights),
    )


def _ratio_row(side: int) -> tuple[str, ...]:
    slots = (1, 16, 64)
    return (
        _size(side),
        f"{ar_image_s(side, 1):.1f}",
        " / ".join(f"{1 / ar_image_s(side, each):.2g}" for each in slots),
        f"{decoder_step_flops(side) / 1e12:.0f}",
        f"{decoder_image_s(side):.1f} / {decoder_image_s(side) / REACHED.decoder:.1f}",
        *(" / ".join(f"{decoders_per_ar(side, each, efficiency):.2g}" for each in slots) for efficiency in (IDEAL, REACHED)),
    )


def _size(side: int) -> str:
    return f"{side}²"


def _table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, tuple("---" for _ in header), *rows))


_BLOCK = re.compile(r"(?P<open><!-- table: (?P<name>\w+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with every table computed anew."""
    computed = tables()
    return _BLOCK.sub(lambda block: f"{block['open']}{computed[block['name']]}\n{block['close']}", page)


def main(arguments: list[str], file: Path = PAGE) -> None:
    """Write the tables, or with `--check` end with 1 when they are not current."""
    page = file.read_text(encoding="utf-8")
    if "--check" not in arguments:
        file.write_text(with_tables(page), encoding="utf-8")
    elif page != with_tables(page):
        sys.exit(f"{file} is out of date: run python -m infra.gpu_doc")


if __name__ == "__main__":
    main(sys.argv[1:])
