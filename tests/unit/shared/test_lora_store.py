"""The folder of adapters: its names, its files, its digest, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shared import lora_store
from shared.errors import PermanentWorkError, StartupError
from shared.lora_store import AdapterFiles, find_adapter, list_loras, lora_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`ink` for both halves, `neon` in diffusers' format for the decoder alone, and things that are no adapters."""
    root = tmp_path / "loras"
    for half in ("ar", "decoder"):
        (root / "ink" / half).mkdir(parents=True)
        (root / "ink" / half / "adapter_config.json").write_text("{}")
        (root / "ink" / half / "adapter_model.safetensors").write_bytes(half.encode())
    (root / "neon" / "decoder").mkdir(parents=True)
    (root / "neon" / "decoder" / "pytorch_lora_weights.safetensors").write_bytes(b"neon")
    (root / "lost+found").mkdir()
    (root / "README.md").write_text("what lies here")
    return root


def test_adapters_of_either_half_are_listed(folder: Path) -> None:
    """Names are sorted; what has neither half is nobody's business; no folder means no adapters."""
    assert list_loras(str(folder)) == ("ink", "neon")
    assert list_loras("") == ()


def test_files_of_each_half_are_found(folder: Path) -> None:
    """peft's two files, or diffusers' one; None where an adapter leaves a half alone."""
    root = folder.resolve()
    half = root / "ink" / "decoder"

    assert find_adapter(str(folder), "ink", "decoder") == AdapterFiles(
        "ink", half / "adapter_config.json", half / "adapter_model.safetensors"
    )
    assert find_adapter(str(folder), "neon", "decoder") == AdapterFiles(
        "neon", None, root / "neon" / "decoder" / "pytorch_lora_weights.safetensors"
    )
    assert find_adapter(str(folder), "neon", "ar") is None


@pytest.mark.parametrize("name", ["Ink", "my adapter", ".hidden", "x" * 65, "tinte·", "ink\n"])
def test_a_name_nobody_could_ask_for_refuses_the_start(folder: Path, name: str) -> None:
    """A request names adapters in a narrow alphabet; the message says which folder to rename."""
    (folder / name / "ar").mkdir(parents=True)

    with pytest.raises(StartupError, match="must be renamed"):
        list_loras(str(folder))


def test_a_folder_that_is_not_there_refuses_the_start(tmp_path: Path) -> None:
    """A mistyped path would otherwise look like a folder without adapters."""
    with pytest.raises(StartupError, match=r"GLMQ_LORA_DIR.*No such file"):
        list_loras(str(tmp_path / "lroas"))


def test_too_many_adapters_refuse_the_start(tmp_path: Path) -> None:
    """The number is bounded and named."""
    for i in range(lora_store.MAX_ADAPTERS + 1):
        (tmp_path / f"a{i}" / "ar").mkdir(parents=True)

    with pytest.raises(StartupError, match="has 65 adapters; at most 64"):
        list_loras(str(tmp_path))


def test_the_digest_names_the_content_not_the_place(folder: Path, tmp_path: Path) -> None:
    """Copies share it; another byte, another name or another half changes it; no adapters have none."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    original = lora_digest(str(folder))
    assert lora_digest(str(copy)) == original
    assert len(original) == 16

    (copy / "neon" / "decoder" / "pytorch_lora_weights.safetensors").write_bytes(b"neoN")
    changed = lora_digest(str(copy))
    (copy / "neon").rename(copy / "neon2")
    renamed = lora_digest(str(copy))
    shutil.rmtree(copy / "ink" / "ar")
    halved = lora_digest(str(copy))

    assert len({original, changed, renamed, halved}) == 4
    assert lora_digest("") == ""


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """Neither the digest nor a request reads what lies elsewhere; links inside the folder are well."""
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"secret")
    weights = folder / "neon" / "decoder" / "pytorch_lora_weights.safetensors"
    weights.unlink()
    weights.symlink_to(secret)

    with pytest.raises(PermanentWorkError, match=r"'neon'.*leads out of the folder") as caught:
        find_adapter(str(folder), "neon", "decoder")
    before = lora_digest(str(folder))
    secret.write_bytes(b"another")

    assert caught.value.code == "lora_broken"
    assert lora_digest(str(folder)) == before

    weights.unlink()
    weights.symlink_to(folder / "ink" / "decoder" / "adapter_model.safetensors")
    assert find_adapter(str(folder), "neon", "decoder") is not None


def test_links_in_a_circle_break_one_adapter(folder: Path) -> None:
    """Whoever asks for it hears why; the folder is read all the same."""
    weights = folder / "neon" / "decoder" / "pytorch_lora_weights.safetensors"
    weights.unlink()
    weights.symlink_to(weights)

    with pytest.raises(PermanentWorkError, match=r"'neon' has no file"):
        find_adapter(str(folder), "neon", "decoder")
    assert lora_digest(str(folder))


def test_a_linked_half_is_not_followed_either(folder: Path, tmp_path: Path) -> None:
    """A link of a whole half leads out as well as one of a file."""
    elsewhere = shutil.copytree(folder / "ink" / "ar", tmp_path / "elsewhere")
    (folder / "neon" / "ar").symlink_to(elsewhere)

    with pytest.raises(PermanentWorkError, match="leads out of the folder"):
        find_adapter(str(folder), "neon", "ar")


def test_pickled_weights_are_not_taken(folder: Path) -> None:
    """A .bin can run code; its owner is told why it does not count."""
    (folder / "ink" / "ar" / "adapter_model.safetensors").rename(folder / "ink" / "ar" / "adapter_model.bin")

    with pytest.raises(PermanentWorkError, match=r"no file ink/ar/adapter_model\.safetensors.*pickled weights are never loaded"):
        find_adapter(str(folder), "ink", "ar")


def test_a_huge_file_is_not_read(folder: Path) -> None:
    """A file beyond any adapter's size is refused by its size, by the digest too."""
    with (folder / "ink" / "ar" / "adapter_model.safetensors").open("r+b") as stream:
        stream.truncate(lora_store.MAX_FILE_BYTES + 1)  # sparse

    with pytest.raises(PermanentWorkError, match="larger than 4 GiB"):
        find_adapter(str(folder), "ink", "ar")
    assert lora_digest(str(folder))
