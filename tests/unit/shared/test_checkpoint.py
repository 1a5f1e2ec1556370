"""Checkpoints are found, named and described from their JSON alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shared.checkpoint import ModelInfo, max_generate_px, read_model_info, read_revision, resolve_checkpoint
from shared.errors import StartupError


def write_checkpoint(folder: Path, own: dict[str, Any] | None = None) -> Path:
    """The JSON of a checkpoint with the published values, and one small weight file."""
    files: dict[str, Any] = {
        "model_index.json": {"_class_name": "GlmImagePipeline"},
        "vision_language_encoder/config.json": {"vq_config": {"num_embeddings": 16384}},
        "vision_language_encoder/generation_config.json": {"temperature": 0.9, "top_p": 0.75},
        "processor/preprocessor_config.json": {"size": {"shortest_edge": 512 * 512, "longest_edge": 2048 * 2048}},
    }
    if own is not None:
        files["glmq.json"] = own
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    for part in ("transformer", "text_encoder", "tokenizer", "vae", "scheduler"):
        (folder / part).mkdir()
    (folder / "vae" / "model.safetensors").write_bytes(b"weights" * 1000)
    return folder


def test_a_checkpoint_without_glmq_json_gets_the_published_defaults(tmp_path: Path) -> None:
    """Steps, guidance and sizes default to the published model's; the rest is read from the files."""
    info = read_model_info(write_checkpoint(tmp_path / "GLM-Image"), "r")

    assert (info.name, info.codebook_size, info.steps, info.guidance_scale) == ("GLM-Image", 16384, 50, 1.5)
    assert (info.default_height_px, info.default_width_px, info.min_px, info.max_px) == (1024, 1024, 32, 2048)
    assert (info.source_min_px, info.source_max_px, info.max_source_aspect) == (512, 2048, 4.0)
    assert (info.temperature, info.top_p) == (0.9, 0.75)


def test_glmq_json_overrides_the_defaults(tmp_path: Path) -> None:
    """A smaller checkpoint names its own steps, sizes and name."""
    info = read_model_info(write_checkpoint(tmp_path / "x", {"name": "toy", "steps": 4, "guidance_scale": 3, "max_px": 256}), "r")

    assert (info.name, info.steps, info.guidance_scale, info.max_px) == ("toy", 4, 3.0, 256)


def test_a_small_model_says_what_sizes_it_draws(tmp_path: Path) -> None:
    """Both halves learn of the limit, the decoder from glmq.json alone; without one, any size is drawn."""
    small = write_checkpoint(tmp_path / "small", {"min_generate_px": 64, "max_generate_px": 256})
    large = write_checkpoint(tmp_path / "large")

    info = read_model_info(small, "r")
    assert (info.min_generate_px, info.max_generate_px, info.max_px) == (64, 256, 2048)
    info = read_model_info(large, "r")
    assert (info.min_generate_px, info.max_generate_px) == (32, None)

    shutil.rmtree(small / "vision_language_encoder")
    assert max_generate_px(small) == 256
    assert max_generate_px(large) is None


def test_the_miniature_describes_itself(miniature: Path) -> None:
    """The random-weight miniature has a name, small sizes and few steps."""
    info = read_model_info(miniature, "r")

    assert (info.name, info.codebook_size, info.max_px, info.default_height_px) == ("random-miniature", 256, 512, 256)
    assert (info.source_min_px, info.source_max_px) == (64, 512)


def test_model_info_survives_json(miniature: Path) -> None:
    """A worker writes its model's description into its row and the API reads the same back."""
    info = read_model_info(miniature, "r", ("ink", "neon"))

    assert ModelInfo.from_json(info.to_json()) == info


def test_model_info_of_another_version_is_read(miniature: Path) -> None:
    """While workers are being replaced, one may report more than the API knows, or know of no adapters yet."""
    info = read_model_info(miniature, "r")
    reported = json.loads(info.to_json())
    del reported["loras"]
    reported["from_the_future"] = 1

    assert ModelInfo.from_json(json.dumps(reported)) == info


def test_adapters_are_part_of_the_revision(tmp_path: Path) -> None:
    """Other adapters make another revision, also of a checkpoint whose own revision is named; without any it is the checkpoint's."""
    checkpoint = write_checkpoint(tmp_path / "a")
    bare = read_revision(checkpoint)

    assert read_revision(checkpoint, lora_digest="0123") == f"{bare}+lora:0123"
    assert read_revision(checkpoint, "v1", "4567") == "v1+lora:4567"


def test_the_revision_names_the_content_not_the_place(tmp_path: Path) -> None:
    """Copies share a revision; a changed weight or setting gets another."""
    original = write_checkpoint(tmp_path / "a")
    copy = shutil.copytree(original, tmp_path / "b")
    assert read_revision(copy) == read_revision(original)
    assert read_revision(original).startswith("sha256:")

    (copy / "vae" / "model.safetensors").write_bytes(b"Weights" + b"weights" * 999)
    changed_weight = read_revision(copy)
    (copy / "model_index.json").write_text("{}")
    changed_json = read_revision(copy)

    assert len({read_revision(original), changed_weight, changed_json}) == 3


def test_a_large_weight_file_is_sampled_to_its_end(tmp_path: Path) -> None:
    """A change in the last bytes of a file too large to hash whole is seen."""
    checkpoint = write_checkpoint(tmp_path / "a")
    weights = checkpoint / "vae" / "model.safetensors"
    weights.write_bytes(bytes(3 * 1024 * 1024))
    before = read_revision(checkpoint)

    weights.write_bytes(bytes(3 * 1024 * 1024 - 1) + b"x")

    assert read_revision(checkpoint) != before


def test_a_hub_snapshot_is_named_by_its_commit(tmp_path: Path) -> None:
    """In the hub's cache, name and revision are the repository's."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = write_checkpoint(tmp_path / "models--zai-org--GLM-Image" / "snapshots" / commit)
    shutil.rmtree(snapshot / "vae")

    assert read_revision(snapshot) == commit
    assert read_model_info(snapshot, commit).name == "zai-org/GLM-Image"


def test_a_folder_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    """The variable that names it is told, not one that would not help."""
    with pytest.raises(StartupError, match=r"GLMQ_CHECKPOINT: .* is no checkpoint"):
        read_revision(tmp_path)


def test_half_a_folder_needs_a_named_revision(tmp_path: Path) -> None:
    """Two machines with one half each could never agree on a digest, so the name is asked for."""
    half = write_checkpoint(tmp_path / "half")
    shutil.rmtree(half / "vae")

    with pytest.raises(StartupError, match="has no vae: set GLMQ_MODEL_REVISION"):
        read_revision(half)
    assert read_revision(half, "v1") == "v1"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vision_language_encoder/config.json", None, "is missing"),
        ("vision_language_encoder/config.json", "{}", "vq_config"),
        ("vision_language_encoder/generation_config.json", "{", "cannot be read"),
        ("processor/preprocessor_config.json", '{"size": {}}', "shortest_edge"),
        ("glmq.json", '{"steps": "many"}', "many"),
        ("glmq.json", "[]", "no JSON object"),
        ("glmq.json", '{"max_generate_px": 31}', "32 to 31 px"),
        ("glmq.json", '{"max_generate_px": "large"}', "large"),
    ],
)
def test_a_broken_checkpoint_is_refused_by_name(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    """The error says which file or value is wrong."""
    checkpoint = write_checkpoint(tmp_path / "a")
    if content is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_text(content)

    with pytest.raises(StartupError, match=message):
        read_model_info(checkpoint, "r")


def test_a_folder_resolves_to_itself(tmp_path: Path) -> None:
    """An existing folder is used as it is."""
    assert resolve_checkpoint(str(tmp_path), "ar") == tmp_path.resolve()


@pytest.mark.parametrize("checkpoint", ["/no/such/folder", "./missing", "plain-name", "a/b/c", "../x", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(checkpoint: str) -> None:
    """A mistyped path is not looked up on the hub."""
    with pytest.raises(StartupError, match="neither a folder"):
        resolve_checkpoint(checkpoint, "ar")


def test_a_hub_id_that_cannot_be_fetched_is_a_startup_error() -> None:
    """Without the network (the tests forbid it) the message names the checkpoint."""
    with pytest.raises(StartupError, match="zai-org/no-such-model"):
        resolve_checkpoint("zai-org/no-such-model", "decoder")
