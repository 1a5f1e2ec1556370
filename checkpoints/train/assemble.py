"""Stage `assemble`: put the finished stages together into one checkpoint folder of the published layout, in bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import GlmImagePipeline
from transformers import ByT5Tokenizer

from checkpoints.train import glyphs, layout, networks, pixels, vae
from checkpoints.train.posters import CELL_PX, MAX_CELLS

_CARD = Path(__file__).with_name("model_card.md")

_GLMQ_JSON = {
    "name": "glmq-miniature",
    "steps": 20,
    "guidance_scale": 1.5,
    "default_height_px": 256,
    "default_width_px": 256,
    "max_px": 2048,
    "min_generate_px": 2 * CELL_PX,
    "max_generate_px": CELL_PX * MAX_CELLS,
}


def write(folder: Path, out: Path) -> None:
    """
    Write the checkpoint made of the runs in `folder` to `out`; what was there is replaced once the new one is whole.

    Raises:
        FileNotFoundError: a stage has no snapshot.
    """
    pipeline = GlmImagePipeline(
        tokenizer=ByT5Tokenizer(),
        processor=networks.processor(),
        text_encoder=glyphs.finished(folder).to(torch.bfloat16),
        vision_language_encoder=layout.finished(folder).to(torch.bfloat16),
        vae=vae.finished(folder).to(torch.bfloat16),
        transformer=pixels.finished(folder).to(torch.bfloat16),
        scheduler=networks.scheduler(),
    )
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    (unfinished / "glmq.json").write_text(json.dumps(_GLMQ_JSON, indent=2) + "\n")
    shutil.copyfile(_CARD, unfinished / "README.md")
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
