"""Nets with an operator's options, on the CPU: int8 weights, compiled blocks, attention, layers that visit the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from checkpoints.evaluate.reading import Reader
from cli.checkpoint import TRAINED_MINIATURE
from services.ar_worker.engine import ArEngine, GridRequest
from services.ar_worker.weights import load_ar_model
from services.decoder_worker.weights import DecoderModel, load_decoder_model, offload_layers
from shared.errors import StartupError
from shared.grid import TokenGrid
from shared.net_loading import NetOptions
from tests.reference import pipeline_of
from tests.velocity import velocity

INT8 = NetOptions(quantization="int8")

CARD = "A plain red card that says 'HI'"

SIDE_PX = 128


@pytest.fixture(scope="module")
def decoder(miniature: Path) -> DecoderModel:
    return load_decoder_model(miniature, "cpu", "float32")


def test_int8_writes_readable_words(record_property: pytest.RecordProperty) -> None:
    """With 8-bit weights the trained miniature writes nearly the same tokens and draws nearly the same pixels: the word is still read."""
    ((tokens, drawn), (int8_tokens, int8_drawn)) = (write_and_draw(options) for options in (NetOptions(), INT8))

    equal = float((int8_tokens == tokens).float().mean())
    difference = float((int8_drawn - drawn).abs().mean())
    record_property("equal_tokens", equal)
    record_property("mean_pixel_difference", difference)
    reader = Reader()
    pictures = [(picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for picture in (drawn, int8_drawn)]
    assert [[line.text for line in reader.read(picture)] for picture in pictures] == [["HI"], ["HI"]]
    assert equal > 0.9
    assert 0 < difference < 0.02


def write_and_draw(options: NetOptions) -> tuple[Tensor, Tensor]:
    """The tokens of one card, and its [3, height, width] pixels."""
    ar = load_ar_model(TRAINED_MINIATURE, "cpu", "float32", options)
    engine = ArEngine(ar)
    engine.start()
    wanted = GridRequest(CARD, TokenGrid.covering(SIDE_PX, SIDE_PX), seed=1, temperature=0.9, top_p=0.75)
    tokens = torch.tensor(engine.submit(wanted, lambda *_: None, lambda: False).result(timeout=120).token_ids)
    engine.close()
    pipeline = pipeline_of(ar, load_decoder_model(TRAINED_MINIATURE, "cpu", "float32", options))
    with torch.inference_mode():
        result = pipeline(
            prompt=CARD,
            prior_token_ids=tokens.repeat_interleave(2, 0).repeat_interleave(2, 1).view(1, -1),
            height=SIDE_PX,
            width=SIDE_PX,
            num_inference_steps=8,
            generator=torch.Generator().manual_seed(1),
            output_type="pt",
        )
    return tokens, cast(Tensor, result.images[0])


def test_only_the_large_layers_are_quantised() -> None:
    """Not lm_head, not what goes in and out of the DiT, not the timestep's shifts, not the VAE."""
    ar = load_ar_model(TRAINED_MINIATURE, "cpu", "float32", INT8)
    decoder = load_decoder_model(TRAINED_MINIATURE, "cpu", "float32", INT8)
    nets = (ar.net, decoder.transformer, decoder.vae, decoder.text_encoder)

    quantised = {name for net in nets for name, parameter in net.named_parameters() if hasattr(parameter, "qdata")}

    assert {name.rpartition("0.")[2] for name in quantised if ".0." in name and "layers.0" in name} == {
        f"{part}.weight"
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }
    assert {name for name in quantised if name.startswith("transformer_blocks.0.")} == {
        f"transformer_blocks.0.{part}.weight"
        for part in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
    }
    assert all(name.startswith(("model.language_model.layers.", "transformer_blocks.")) for name in quantised)


# torch's own, when it first loads what compiles.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_blocks_compute_the_same(decoder: DecoderModel, miniature: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile` traces the blocks whole and runs their graphs; inductor, a minute of g++ and torch's own matter, is left out."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled = load_decoder_model(miniature, "cpu", "float32", NetOptions(compile="default"))

    torch.testing.assert_close(velocity(compiled.transformer), velocity(decoder.transformer), atol=1e-4, rtol=1e-4)


def test_native_attention_is_what_auto_means(decoder: DecoderModel, miniature: Path) -> None:
    """Both halves load with torch's own attention by name, and the DiT computes the same bits."""
    by_name = load_decoder_model(miniature, "cpu", "float32", NetOptions(attention="native"))

    assert torch.equal(velocity(by_name.transformer), velocity(decoder.transformer))
    assert load_ar_model(miniature, "cpu", "float32", NetOptions(attention="native")).net.config._attn_implementation == "sdpa"


def test_layers_that_visit_the_device_compute_the_same(decoder: DecoderModel, miniature: Path) -> None:
    """Whole nets and single methods of them; here the device is the CPU too. The net names the device, not where its weights wait."""
    visiting = load_decoder_model(miniature, "cpu", "float32")
    for net in (visiting.transformer, visiting.vae):
        offload_layers(net, torch.device("cpu"))
    latents = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(2))

    with torch.inference_mode():
        assert torch.equal(visiting.vae.decode(latents, return_dict=False)[0], decoder.vae.decode(latents, return_dict=False)[0])
    assert torch.equal(velocity(visiting.transformer), velocity(decoder.transformer))
    assert visiting.vae.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NetOptions(cpu_offload="idle"), "GLMQ_CPU_OFFLOAD=idle is for cuda devices"),
        (NetOptions(quantization="fp8"), "GLMQ_QUANTIZATION=fp8 needs a cuda device"),
        (NetOptions(attention="flash"), "GLMQ_ATTENTION=flash is for cuda devices"),
        (NetOptions(lora_dir="/no/such/folder"), "GLMQ_LORA_DIR"),
    ],
)
def test_what_this_machine_cannot_do_refuses_the_start(miniature: Path, options: NetOptions, message: str) -> None:
    """Both halves say it with the variable's name."""
    with pytest.raises(StartupError, match=message):
        load_ar_model(miniature, "cpu", "float32", options)
    with pytest.raises(StartupError, match=message):
        load_decoder_model(miniature, "cpu", "float32", options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NetOptions(attention="sage"), "GLMQ_ATTENTION=sage is for the decoder; the AR worker has auto, native, flash, flash_3"),
        (NetOptions(cpu_offload="all"), "GLMQ_CPU_OFFLOAD=all is for the decoder"),
        (NetOptions(compile="default"), "GLMQ_COMPILE=default is for the decoder; the AR worker has GLMQ_AR_DECODE"),
    ],
)
def test_what_the_ar_half_does_not_have_is_refused(miniature: Path, options: NetOptions, message: str) -> None:
    """An option of the other half is not silently without effect."""
    with pytest.raises(StartupError, match=message):
        load_ar_model(miniature, "cpu", "float32", options)
