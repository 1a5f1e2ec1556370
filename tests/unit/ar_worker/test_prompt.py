"""A request becomes ids and positions the model was trained on, or is refused before any net runs."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from services.ar_worker.prompt import build_prompt, decode_positions
from services.ar_worker.weights import ArModel
from shared.errors import PermanentWorkError
from shared.grid import TokenGrid

GRID = TokenGrid(4, 6)


def images(*sizes: tuple[int, int]) -> tuple[Image.Image, ...]:
    return tuple(Image.new("RGB", (width, height), (200, 10, 10)) for height, width in sizes)


def text_of(model: ArModel, input_ids: torch.Tensor) -> str:
    return str(model.processor.tokenizer.decode(input_ids[0], skip_special_tokens=False))


def test_text_to_image_ends_with_both_grids(ar_model: ArModel) -> None:
    """The prompt is followed by the grid's size, the draft's size and the image start token."""
    prompt = build_prompt(ar_model, "A cat", GRID, ())

    assert text_of(ar_model, prompt.input_ids) == "A cat<sop>4 6<eop><sop>13 19<eop><|dit_token_256|>"
    assert prompt.decode_positions.shape == (3, 1, 13 * 19 + 4 * 6)
    assert prompt.pixel_values is None


def test_image_to_image_starts_with_its_sources(ar_model: ArModel) -> None:
    """Each source is a row of placeholders between start and end token; no draft is asked for."""
    prompt = build_prompt(ar_model, "A cat", GRID, images((64, 96), (64, 64)))

    first, second = "<|image|>" * 6, "<|image|>" * 4
    start, end = "<|dit_token_256|>", "<|dit_token_257|>"
    assert text_of(ar_model, prompt.input_ids) == f"{start}{first}{end}{start}{second}{end}A cat<sop>4 6<eop>{start}"
    assert prompt.decode_positions.shape == (3, 1, 4 * 6)
    assert prompt.source_grids.tolist() == [[1, 2, 3], [1, 2, 2]]


@pytest.mark.parametrize("grid", [TokenGrid(4, 4), TokenGrid(2, 7), TokenGrid(8, 3), TokenGrid(1, 16)])
@pytest.mark.parametrize("sizes", [(), ((64, 64),), ((64, 96), (256, 64)), ((512, 512), (64, 64), (128, 96))])
def test_positions_equal_the_model_s_own(ar_model: ArModel, sizes: tuple[tuple[int, int], ...], grid: TokenGrid) -> None:
    """For any mix of sources and sizes, prompt and grid stand where get_rope_index() puts them."""
    prompt = build_prompt(ar_model, "A cat", grid, images(*sizes))
    targets = [[1, grid.token_h, grid.token_w]] + ([] if sizes else [[1, grid.draft_h, grid.draft_w]])
    grids = torch.cat([prompt.source_grids, torch.tensor(targets)])
    # A class of its own, for it keeps its result on itself.
    model = type(ar_model.net.model)(ar_model.net.config)

    prefill, _ = model.get_rope_index(prompt.input_ids, image_grid_thw=grids, images_per_sample=torch.tensor([len(grids)]))

    assert torch.equal(prompt.prefill_positions, prefill)
    # The last is the end token's, which is not written here.
    assert torch.equal(prompt.decode_positions[:, 0], model._cached_decode_position_ids[0, :, :-1])


def test_a_grid_is_counted_row_by_row() -> None:
    """The next grid starts after the longer side of the one before."""
    positions = decode_positions([(1, 3), (2, 1)], 10)

    assert positions.tolist() == [[10, 10, 10, 13, 13], [10, 10, 10, 13, 14], [10, 11, 12, 13, 13]]


@pytest.mark.parametrize("prompt", ["猫「こんにちは」🐈‍⬛", "\x00\x07", "\N{RIGHT-TO-LEFT OVERRIDE}abc", " ", "\n", "a <| b", "😀" * 500])
def test_any_unicode_is_a_prompt(ar_model: ArModel, prompt: str) -> None:
    """Every valid string tokenises, and decodes to itself."""
    built = build_prompt(ar_model, prompt, GRID, ())

    assert text_of(ar_model, built.input_ids).startswith(prompt + "<sop>")


@pytest.mark.parametrize("prompt", ["a <|image|> b", "<sop>9 9<eop>", "<|dit_token_256|>", "<|dit_token_7|>", "[gMASK]", "<|endoftext|>"])
def test_control_tokens_are_refused(ar_model: ArModel, prompt: str) -> None:
    """A prompt cannot speak the model's own language; the error names the token and is final."""
    with pytest.raises(PermanentWorkError, match="reads as a command") as caught:
        build_prompt(ar_model, prompt, GRID, ())
    assert caught.value.code == "unprocessable_prompt"


def test_a_token_that_only_the_tokenizer_knows_is_refused(ar_model: ArModel) -> None:
    """Another checkpoint's special tokens need not look like GLM-4's."""
    ids = ar_model.processor.tokenizer("q")["input_ids"]
    model = ArModel(**{**vars(ar_model), "control_ids": ar_model.control_ids | set(ids)})

    with pytest.raises(PermanentWorkError, match="contains q"):
        build_prompt(model, "a quilt", GRID, ())


def test_half_a_character_is_refused(ar_model: ArModel) -> None:
    """A lone surrogate, which JSON can carry, is no text."""
    with pytest.raises(PermanentWorkError, match="Unicode"):
        build_prompt(ar_model, "a \ud83d cat", GRID, ())


def test_a_prompt_beyond_the_model_is_refused(ar_model: ArModel) -> None:
    """The message says how long it is, and that the picture counts."""
    with pytest.raises(PermanentWorkError, match=r"70\d\d\d.*65536") as caught:
        build_prompt(ar_model, "x" * 70_000, GRID, ())
    assert caught.value.code == "unprocessable_prompt"


@pytest.mark.parametrize("size", [(100, 100), (48, 64), (1024, 512), (32, 64)])
def test_a_source_that_was_not_normalised_is_refused(ar_model: ArModel, size: tuple[int, int]) -> None:
    """Where the two stages would cut an image into different grids, the AR stage says so at once."""
    with pytest.raises(PermanentWorkError, match="not normalised") as caught:
        build_prompt(ar_model, "A cat", GRID, images(size))
    assert caught.value.code == "invalid_image"


def test_a_source_beyond_the_processor_s_aspect_is_refused(ar_model: ArModel) -> None:
    """The processor's own objection becomes the job's error."""
    with pytest.raises(PermanentWorkError, match="aspect ratio") as caught:
        build_prompt(ar_model, "A cat", GRID, images((64, 320)))
    assert caught.value.code == "invalid_image"
