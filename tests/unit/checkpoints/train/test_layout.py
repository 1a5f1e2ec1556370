"""The AR model is trained on what it will meet: the ids and positions of the real processor, and of generation code by code."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline
from PIL import Image
from transformers import GlmImageForConditionalGeneration, GlmImageProcessor

from checkpoints.train.codes import CODEBOOK_SIZE, codes, draft_codes
from checkpoints.train.layout import LayoutNet, loss_of
from checkpoints.train.networks import LAYOUT_WORDS, processor, tokenizer
from checkpoints.train.posters import COLOURS, Poster, all_sizes
from checkpoints.train.prompts import WORDS, sample_poster
from checkpoints.train.rows import Batch, draft_size, look, make_batch, make_edit_batch, together
from checkpoints.train.sampled import judge
from checkpoints.train.wordings import prompt_for
from shared.source_size import SourceLimits, legal_size


@pytest.fixture(scope="module")
def words() -> GlmImageProcessor:
    return processor()


@pytest.fixture(scope="module")
def net() -> LayoutNet:
    """Untrained, its head loud enough that a wrong position shows."""
    net = LayoutNet(3)
    with torch.no_grad():
        net.head.features.normal_(std=0.3)
    net.fold()
    return net


def recorded_logits(
    model: GlmImageForConditionalGeneration, words: GlmImageProcessor, batch: Batch, row: int, **request: Any
) -> torch.Tensor:
    """
    (N, vocabulary) of the pipeline's own generation, whose samples are replaced by what the row has written.

    The end is never written there, so there is one row fewer than `batch.written` has codes.
    """
    written, heard = batch.written[row], []

    class Dictate(torch.nn.Module):
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            heard.append(scores[0].clone())
            forced = torch.full_like(scores, -torch.inf)
            forced[0, written[len(heard) - 1]] = 0.0
            return forced

    pipeline = GlmImagePipeline(
        tokenizer=None, processor=words, text_encoder=None, vision_language_encoder=model, vae=None, transformer=None, scheduler=None
    )
    generate = model.generate
    model.generate = lambda **settings: generate(**settings, logits_processor=[Dictate()], suppress_tokens=None)
    try:
        with torch.no_grad():
            pipeline.generate_prior_tokens(device=torch.device("cpu"), generator=torch.Generator().manual_seed(0), **request)
    finally:
        del model.generate
    return torch.stack(heard)


def taught_logits(net: LayoutNet, batch: Batch, row: int) -> torch.Tensor:
    """(N, vocabulary) of the training's forward pass."""
    with torch.no_grad():
        hidden = net.language(inputs_embeds=net.embedding(batch.ids), position_ids=batch.positions, use_cache=False).last_hidden_state
        start = batch.starts[row] - 1
        logits: torch.Tensor = hidden[row, start : start + batch.written.shape[1]] @ net.head.folded().T
    return logits


@pytest.mark.parametrize("size", [(2, 3), (8, 5)])
def test_a_poster_row_is_what_generation_sees(net: LayoutNet, words: GlmImageProcessor, size: tuple[int, int]) -> None:
    """Same prompt ids, and the logits of cached generation at every code of draft and picture."""
    batch = make_batch(random.Random(5), size, 3)
    height, width = 32 * size[0], 32 * size[1]
    row = int(batch.starts.argmin())

    message = [{"role": "user", "content": [{"type": "text", "text": batch.prompts[row]}]}]
    seen = words.apply_chat_template(
        [message], tokenize=True, padding=False, target_h=height, target_w=width, return_dict=True, return_tensors="pt"
    )
    assert seen["input_ids"][0].tolist() == batch.ids[row, : batch.starts[row]].tolist()
    assert seen["image_grid_thw"].tolist() == [[1, *size], [1, *draft_size(*size)]]

    heard = recorded_logits(net.model, words, batch, row, prompt=batch.prompts[row], height=height, width=width)
    taught = taught_logits(net, batch, row)
    assert len(heard) == batch.written.shape[1]
    torch.testing.assert_close(heard, taught, atol=2e-3, rtol=1e-4)


def test_an_edit_row_is_what_generation_sees(net: LayoutNet, words: GlmImageProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the codes of a source picture before the instruction."""
    size = (3, 5)
    batch = make_edit_batch(random.Random(6), size, 2)
    source = batch.ids[0, 1 : 1 + size[0] * size[1]]
    monkeypatch.setattr(net.model.model, "get_image_tokens", lambda *_: source)
    picture = Image.new("RGB", (32 * size[1], 32 * size[0]))

    heard = recorded_logits(net.model, words, batch, 0, prompt=batch.prompts[0], height=32 * size[0], width=32 * size[1], image=[[picture]])

    assert int((batch.ids[0, : batch.starts[0]] < CODEBOOK_SIZE).sum()) == size[0] * size[1]
    torch.testing.assert_close(heard, taught_logits(net, batch, 0), atol=2e-3, rtol=1e-4)


def test_training_attention_is_the_librarys(net: LayoutNet) -> None:
    """The faster attention of training gives the library's loss."""
    rng, losses = random.Random(7), []
    view = together([look(make_batch(rng, (4, 3), 2), "whole"), look(make_batch(rng, (2, 5), 2), "some")])
    usual = net.language.config._attn_implementation
    try:
        for attention in ("sdpa", "plain"):
            net.language.config._attn_implementation = attention
            losses.append(loss_of(net, view)[0].item())
    finally:
        net.language.config._attn_implementation = usual

    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


@pytest.mark.parametrize("kind", ["prompts", "some", "whole"])
def test_a_view_shows_what_its_batch_holds(kind: str) -> None:
    """Where nothing is spoilt, prompts, codes and positions are the batch's, and each wanted code follows the one shown before it."""
    batch = make_batch(random.Random(11), (3, 4), 30)
    torch.manual_seed(1)
    view = look(batch, kind)
    clean = [row for row in range(30) if view.spoilt[row] == 0]
    assert clean

    for row in clean:
        start = int(batch.starts[row])
        places = {tuple(place): int(code) for place, code in zip(batch.positions[:, row].T.tolist(), batch.ids[row], strict=True)}
        assert view.ids[row, :start].tolist() == batch.ids[row, :start].tolist()
        shown = int(view.columns[row, -1]) + 1
        for place, code in zip(view.positions[:, row, start:shown].T.tolist(), view.ids[row, start:shown].tolist(), strict=True):
            assert places[tuple(place)] == code
        assert view.wanted[row, 0] == batch.written[row, 0]


def test_views_of_several_sizes_go_together() -> None:
    """Padding is wanted from nobody."""
    rng = random.Random(12)
    views = [look(make_batch(rng, (2, 2), 3), "some"), look(make_edit_batch(rng, (5, 4), 2), "some")]

    whole = together(views)

    assert whole.ids.shape[0] == len(whole.posters) == 5
    assert int((whole.wanted >= 0).sum()) == sum(int((view.wanted >= 0).sum()) for view in views)
    assert whole.wanted[:3, : views[0].wanted.shape[1]].tolist() == views[0].wanted.tolist()


def test_a_batch_says_what_its_posters_show() -> None:
    """The draft's codes, the picture's, and the end."""
    size = (5, 8)
    batch = make_batch(random.Random(8), size, 6)

    for poster, written in zip(batch.posters, batch.written, strict=True):
        grid = codes(poster)
        assert written[: batch.draft].tolist() == draft_codes(poster, *draft_size(*size)).ravel().tolist()
        assert written[batch.draft :].tolist() == [*grid.ravel().tolist(), CODEBOOK_SIZE + 1]


@pytest.mark.parametrize("size", list(all_sizes()))
def test_draft_sizes_are_the_processors(words: GlmImageProcessor, size: tuple[int, int]) -> None:
    """For every trained size."""
    assert words._get_target_shape(32 * size[0], 32 * size[1]) == (*size, *draft_size(*size))


def test_the_judge_knows_right_from_wrong() -> None:
    """A poster's own codes pass; those of another fail where it differs, and only there."""
    poster = Poster(6, 6, "teal", "white", "GRAND OPENING", "top", "border")
    others = {
        "background": Poster(6, 6, "red", "white", "GRAND OPENING", "top", "border"),
        "colour": Poster(6, 6, "teal", "yellow", "GRAND OPENING", "top", "border"),
        "decoration": Poster(6, 6, "teal", "white", "GRAND OPENING", "top"),
        "gradient": Poster(6, 6, "teal", "white", "GRAND OPENING", "top", "border", gradient=True),
        "rows": Poster(6, 6, "teal", "white", "GRAND", "top", "border"),
    }

    assert set(judge(codes(poster), poster).values()) == {1.0}
    for what, other in others.items():
        verdict = judge(codes(other), poster)
        assert verdict["exact"] == 0
        assert not verdict[what]
        # A border takes its place from the plain cells and the text.
        assert what == "decoration" or [name for name, right in verdict.items() if not right and name != "exact"] == [what]


# ---------------------------------------------------------------- the tokenizer


def test_any_text_survives_the_tokenizer() -> None:
    """Ids to text gives the text again, whatever its script."""
    text = tokenizer()
    for prompt in (
        "A teal poster with the words 'GRAND OPENING' in white.",
        "Ünïcode 「こんにちは」 “naïve”",
        "it's\n a 'dog''s\t\"B\" 100 1 77",
        "🎉 x",
    ):
        assert text.decode(text(prompt)["input_ids"]) == prompt


def test_words_of_a_quote_can_be_counted() -> None:
    """A space that stands alone is one between two words of the quote, whatever quote and case."""
    text, rng = tokenizer(), random.Random(9)
    for _ in range(300):
        poster = sample_poster(rng, *rng.choice(list(all_sizes())))
        pieces = text.tokenize(prompt_for(rng, poster))
        assert pieces.count("Ġ") == poster.text.count(" ")


def test_layout_words_are_one_token_each_outside_quotes_only() -> None:
    """Colours too; and no word of a poster is ever one token."""
    text = tokenizer()
    assert set(COLOURS) <= set(LAYOUT_WORDS)
    assert all(len(text.tokenize(f"on {word} now")) == len(text.tokenize("on now")) + 1 for word in LAYOUT_WORDS)
    assert text.tokenize(" 'red top'") == ["Ġ'", "r", "e", "d", "Ġ", "t", "o", "p", "'"]
    assert all(len(text.tokenize(f"'{word}'")) == len(word) + 2 for word in WORDS)


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("size", list(all_sizes()))
def test_sources_of_trained_sizes_keep_their_size(words: GlmImageProcessor, size: tuple[int, int]) -> None:
    """Neither the normalisation of sources nor the processor rescales them: one token is 32 px."""
    height, width = 32 * size[0], 32 * size[1]
    assert legal_size(height, width, SourceLimits(min_px=64, max_px=256)) == (height, width)
    picture = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    assert words.image_processor(images=[picture], return_tensors="pt")["image_grid_thw"].tolist() == [[1, *size]]
