"""
A checkpoint folder as seen from outside: where it is, what it is called, and the limits and defaults it sets.

Reads JSON and the first bytes of weight files; knows no torch and loads no weights. The folder has the published layout
(`zai-org/GLM-Image`); a file `glmq.json` at its root may name settings that suit a smaller checkpoint better.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shared.errors import StartupError
from shared.grid import TOKEN_PX

_HALF_FOLDERS = {
    "ar": ("vision_language_encoder", "processor"),
    "decoder": ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"),
}

# Every half reads all of the JSON, for `read_model_info`; it weighs little.
_SMALL_FILES = ("*.json", "*/*.json", "*/*.jinja", "*/*.txt")

# Source: https://huggingface.co/zai-org/GLM-Image, README and pipeline defaults.
_PUBLISHED: dict[str, Any] = {
    "steps": 50,
    "guidance_scale": 1.5,
    "default_height_px": 1024,
    "default_width_px": 1024,
    "min_px": 32,
    "max_px": 2048,
}

_SAMPLE_BYTES = 64 * 1024
_NUM_SAMPLES = 16
"""Guess: 1 MiB of a weight file tells checkpoints apart; reading all of 36 GB at every start would not be worth it."""


@dataclass(frozen=True)
class ModelInfo:
    """
    What the services must know of a checkpoint without loading it.

    Attributes:
        revision: hub commit, or `sha256:` and 16 hex digits of the files, with `+lora:` and 16 of the adapters; token grids carry it.
        min_px: smallest side that may be asked for; `max_px`: the largest.
        source_min_px: smallest side of a normalised source image; `source_max_px`: the largest.
        max_source_aspect: longest side of a source over its shortest. The image processor refuses more.
        min_generate_px: smallest side that the model draws; by default `min_px`.
        max_generate_px: longest side that the model draws; larger pictures are drawn at a smaller size and resized. None: any.
        loras: names of the adapters that a request may ask for, of either half.
        max_tokens: longest prompt and picture together that the AR worker has room for. None: it does not tell.
        token_bytes: of characters of 1, 2, 3 and 4 bytes in UTF-8, the most bytes that one token holds. Empty: it does not tell.
    """

    name: str
    revision: str
    codebook_size: int
    steps: int
    guidance_scale: float
    temperature: float
    top_p: float
    default_height_px: int
    default_width_px: int
    min_px: int
    max_px: int
    source_min_px: int
    source_max_px: int
    max_source_aspect: float = 4.0
    min_generate_px: int = TOKEN_PX
    max_generate_px: int | None = None
    loras: tuple[str, ...] = ()
    max_tokens: int | None = None
    token_bytes: tuple[int, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """What `to_json` wrote, here or in a worker that is a little older or newer: unknown fields are left out."""
        values = json.loads(text)
        values |= {name: tuple(values.get(name, ())) for name in ("loras", "token_bytes")}
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def resolve_checkpoint(checkpoint: str, half: Literal["ar", "decoder"]) -> Path:
    """
    The folder of a checkpoint, given as a folder or as a hub id; a hub id is downloaded, this half of it only.

    Raises:
        StartupError: neither a folder nor something the hub has.
    """
    folder = Path(checkpoint).expanduser()
    if checkpoint and folder.is_dir():  # an empty path would be the working directory
        return folder.resolve()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) or checkpoint.startswith("."):
        raise StartupError(f"GLMQ_CHECKPOINT={checkpoint!r} is neither a folder that exists nor a hub id such as zai-org/GLM-Image")
    # Only here: the API reads checkpoints too, and does without the hub's client.
    from huggingface_hub import snapshot_download

    weights = [f"{name}/*.safetensors" for name in _HALF_FOLDERS[half]]
    try:
        return Path(snapshot_download(checkpoint, allow_patterns=[*_SMALL_FILES, *weights]))
    except Exception as error:  # the client's errors have no common base, and each means the same here
        raise StartupError(f"cannot get checkpoint {checkpoint!r} from the hub: {error}") from error


def read_model_info(path: Path, revision: str, loras: tuple[str, ...] = ()) -> ModelInfo:
    """
    Read name, defaults and limits of the checkpoint at `path`; its AR half is enough.

    Args:
        loras: the adapters that belong to it (`lora_store.list_loras`).
    Raises:
        StartupError: a file is missing, broken or without a value that is needed.
    """
    own = _read_own(path)
    sampling = _read_json(path / "vision_language_encoder" / "generation_config.json")
    try:
        codebook_size = _read_json(path / "vision_language_encoder" / "config.json")["vq_config"]["num_embeddings"]
        source_min_px, source_max_px = _source_limits(path / "processor")
        min_generate_px, max_generate_px = _generate_limits(own)
        settings: dict[str, Any] = {name: type(default)(own.get(name, default)) for name, default in _PUBLISHED.items()}
        return ModelInfo(
            name=str(own.get("name") or _hub_name(path) or path.name),
            revision=revision,
            codebook_size=int(codebook_size),
            # transformers' own defaults, where the file leaves them out.
            temperature=float(sampling.get("temperature", 1.0)),
            top_p=float(sampling.get("top_p", 1.0)),
            source_min_px=source_min_px,
            source_max_px=source_max_px,
            min_generate_px=min_generate_px,
            max_generate_px=max_generate_px,
            loras=loras,
            **settings,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StartupError(f"checkpoint {path} has no usable value for {error}") from error


def max_generate_px(path: Path) -> int | None:
    """
    Longest side that the model of the checkpoint at `path` draws, None for any that may be asked for. Either half tells.

    Raises:
        StartupError: glmq.json is broken.
    """
    try:
        return _generate_limits(_read_own(path))[1]
    except (TypeError, ValueError) as error:
        raise StartupError(f"checkpoint {path} has no usable value for {error}") from error


def _read_own(path: Path) -> dict[str, Any]:
    return _read_json(path / "glmq.json") if (path / "glmq.json").is_file() else {}


def _generate_limits(own: dict[str, Any]) -> tuple[int, int | None]:
    """Shortest and longest side that the model draws, in pixels; the published model draws any."""
    min_px = int(own.get("min_generate_px", own.get("min_px", TOKEN_PX)))
    max_px = None if own.get("max_generate_px") is None else int(own["max_generate_px"])
    if min_px < 1 or (max_px is not None and math.ceil(min_px / TOKEN_PX) > max_px // TOKEN_PX):
        raise ValueError(f"the sides that the model draws, {min_px} to {max_px} px: no multiple of {TOKEN_PX} is in that range")
    return min_px, max_px


def _source_limits(processor: Path) -> tuple[int, int]:
    """Shortest and longest side of the image processor, in pixels; the file says both as areas."""
    merged = processor / "processor_config.json"
    config = _read_json(merged).get("image_processor") if merged.is_file() else None
    # Checkpoints saved before transformers 5 keep the image processor in a file of its own.
    config = config or _read_json(processor / "preprocessor_config.json")
    return math.isqrt(config["size"]["shortest_edge"]), math.isqrt(config["size"]["longest_edge"])


def _is_hub_snapshot(path: Path) -> bool:
    return path.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", path.name) is not None


def _hub_name(path: Path) -> str | None:
    """`zai-org/GLM-Image` of `…/models--zai-org--GLM-Image/snapshots/<commit>`."""
    return path.parents[1].name.removeprefix("models--").replace("--", "/") if _is_hub_snapshot(path) else None


def read_revision(path: Path, named: str = "", lora_digest: str = "") -> str:
    """
    A name for this very content, on which both halves must agree: as `named`, the hub's commit, or a digest of JSON and weight files.

    Args:
        lora_digest: that of the adapters beside it (`lora_store.lora_digest`); whoever names the checkpoint has not named them.
    Raises:
        StartupError: a local folder with one half only, whose digest the other half could not have.
    """
    revision = _checkpoint_revision(path, named)
    return f"{revision}+lora:{lora_digest}" if lora_digest else revision


def _checkpoint_revision(path: Path, named: str) -> str:
    if named:
        return named
    if _is_hub_snapshot(path):
        return path.name
    folders = [name for half in _HALF_FOLDERS.values() for name in half]
    missing = [name for name in folders if not (path / name).is_dir()]
    if missing == folders:
        raise StartupError(f"GLMQ_CHECKPOINT: {path} is no checkpoint: it has none of {', '.join(folders)}")
    if missing:
        raise StartupError(
            f"the checkpoint {path} has no {', '.join(missing)}: set GLMQ_MODEL_REVISION to the same name for both kinds of worker"
        )
    digest = hashlib.sha256()
    for file in sorted([*path.rglob("*.json"), *path.rglob("*.safetensors")], key=lambda file: file.relative_to(path).as_posix()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        for block in _sample(file):
            digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def _sample(file: Path) -> Iterator[bytes]:
    """All of a JSON or small file; evenly spaced blocks of a large one, the first of which holds the safetensors header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if file.suffix == ".json" or size <= _NUM_SAMPLES * _SAMPLE_BYTES:
            yield stream.read()
            return
        for i in range(_NUM_SAMPLES):
            stream.seek(i * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
            yield stream.read(_SAMPLE_BYTES)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StartupError(f"checkpoint file {file} is missing") from error
    except (OSError, ValueError) as error:
        raise StartupError(f"checkpoint file {file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"checkpoint file {file} holds no JSON object")
    return value
