"""Stage `assemble`: put the finished stages together into one checkpoint folder of the published layout, in bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import GlmImagePipeline
from transformers import ByT5Tokenizer

from checkpoints import published
from checkpoints.train import glyphs, layout, networks, pixels, vae
from checkpoints.train.posters import CELL_PX, MAX_CELLS

_CARD = Path(__file__).with_name("model_card.md")

_GLMQ_JSON = {
    "name": "glmq-miniature",
    "steps": 20,
    "guidance_scale": 1.5,
    "default_height_px": CELL_PX * MAX_CELLS,
    "default_width_px": CELL_PX * MAX_CELLS,
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
    nets = {
        "text_encoder": glyphs.finished(folder),
        "vision_language_encoder": layout.finished(folder),
        "vae": vae.finished(folder),
        "transformer": pixels.finished(folder),
    }
    sizes = {name: f"{sum(parameter.numel() for parameter in net.parameters()) / 1e6:.1f} M" for name, net in nets.items()}
    sampling = nets["vision_language_encoder"].generation_config
    card = _CARD.read_text(encoding="utf-8").format(**sizes, **_GLMQ_JSON, temperature=sampling.temperature, top_p=sampling.top_p)
    pipeline = GlmImagePipeline(
        tokenizer=ByT5Tokenizer(),
        processor=networks.processor(),
        scheduler=published.scheduler(),
        **{name: net.to(torch.bfloat16) for name, net in nets.items()},
    )
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    config = unfinished / "vae" / "config.json"
    values = json.loads(config.read_text())
    values.pop("_name_or_path", None)  # a folder of the machine that trained
    config.write_text(json.dumps(values, indent=2) + "\n")
    (unfinished / "glmq.json").write_text(json.dumps(_GLMQ_JSON, indent=2) + "\n")
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
