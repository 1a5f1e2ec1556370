"""The arithmetic of docs/gpu.md beside the nets' own classes, and beside figures that were worked out before it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental import _config as meta_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import GlmImageConfig
from transformers.models.glm_image.modeling_glm_image import GlmImageTextModel

from infra import gpu_arithmetic as gpu
from infra.bench import published_nets
from infra.gpu_doc import SIDES_PX
from services.ar_worker.weights import _LANGUAGE_LAYER
from services.decoder_worker.weights import _is_block_layer

META = torch.device("meta")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that exist at once, `weights` aside; on the meta device none of them is there."""

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        self._weights = {parameter.untyped_storage()._cdata for parameter in weights.parameters()}
        self._sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes and storage._cdata not in self._weights:
                    self._sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, storage._cdata, None)
                    self.peak = max(self.peak, sum(self._sizes.values()))
        return result


def peak_bytes(net: nn.Module, run: Callable[[], object]) -> int:
    with torch.inference_mode(), LiveBytes(net) as live:
        run()
    return live.peak


@pytest.fixture(scope="module")
def vae() -> Any:
    with published_nets.made_on(META, torch.bfloat16):
        return published_nets.vae()


@pytest.fixture(scope="module")
def dit() -> Any:
    with published_nets.made_on(META, torch.bfloat16):
        return published_nets.transformer()


def num_weights(net: nn.Module, is_counted: Callable[[str], bool] = lambda _: True) -> int:
    return sum(parameter.numel() for name, parameter in net.named_parameters() if is_counted(name))


def test_weights_of_the_decoder(vae: Any, dit: Any) -> None:
    """The classes with the published configuration have exactly the weights that the tables are made of, biases aside."""
    assert num_weights(vae) == gpu.VAE_WEIGHTS
    assert num_weights(dit) == gpu.DIT_WEIGHTS
    quantised = num_weights(dit, lambda name: name.endswith(".weight") and _is_block_layer(name.removesuffix(".weight")))
    assert quantised == gpu.DIT_BLOCK_WEIGHTS
    assert max(parameter.numel() for parameter in dit.parameters()) == gpu.LARGEST_LAYER_WEIGHTS


def test_weights_of_the_ar_model() -> None:
    """The layers that are read for every token, and that are quantised, biases and norms aside."""
    config = GlmImageConfig(
        text_config={
            "hidden_size": gpu.WIDTH,
            "num_hidden_layers": gpu.AR_LAYERS,
            "num_attention_heads": 32,
            "num_key_value_heads": gpu.AR_KV_HEADS,
            "intermediate_size": gpu.AR_FF,
            "vocab_size": gpu.AR_VOCAB,
        }
    ).text_config
    with published_nets.made_on(META, torch.bfloat16):
        layers = GlmImageTextModel(config)

    quantised = num_weights(
        layers, lambda name: name.endswith(".weight") and _LANGUAGE_LAYER.fullmatch(f"model.language_model.{name.removesuffix('.weight')}")
    )

    assert quantised == gpu.AR_LAYER_WEIGHTS
    assert pytest.approx(gpu.AR_WEIGHTS, rel=0.01) == gpu.AR_VOCAB * gpu.WIDTH + gpu.AR_STEP_WEIGHTS + gpu.VISION_TOWER_WEIGHTS
    assert gpu.KV_BYTES_PER_TOKEN == 40 * 1024


def test_peak_of_the_vae(vae: Any) -> None:
    """Decoding a picture keeps three maps of 512 channels alive at once, which is less than a GPU was seen to take; encoding needs less."""
    side = 512
    latents = torch.zeros(1, 16, side // 8, side // 8, dtype=torch.bfloat16, device=META)
    pixels = torch.zeros(1, 3, side, side, dtype=torch.bfloat16, device=META)

    assert peak_bytes(vae, lambda: vae.decode(latents)) == gpu.VAE_MAPS_BYTES_PER_PX * side**2 < gpu.VAE_BYTES_PER_PX * side**2
    assert peak_bytes(vae, lambda: vae.encode(pixels)) < gpu.VAE_MAPS_BYTES_PER_PX * side**2


@pytest.mark.parametrize("side", [512, 2048])
def test_peak_of_the_dit(dit: Any, side: int) -> None:
    """One pass needs as much per patch as the tables say, within 2 %."""
    patches = gpu.num_patches(side)

    def run() -> None:
        dit(
            hidden_states=torch.zeros(1, 16, side // 8, side // 8, dtype=torch.bfloat16, device=META),
            encoder_hidden_states=torch.zeros(1, gpu.GLYPH_TOKENS, 1472, dtype=torch.bfloat16, device=META),
            prior_token_id=torch.zeros(1, patches, dtype=torch.int64, device=META),
            prior_token_drop=torch.zeros(1, patches, dtype=torch.bool, device=META),
            timestep=torch.zeros(1, device=META),
            target_size=torch.zeros(1, 2, dtype=torch.bfloat16, device=META),
            crop_coords=torch.zeros(1, 2, dtype=torch.bfloat16, device=META),
        )

    # Which embeddings are dropped is in numbers that are not there.
    with meta_config.patch(meta_nonzero_assume_all_nonzero=True):
        peak = peak_bytes(dit, run)

    assert peak == pytest.approx(gpu.DIT_BYTES_PER_PATCH * patches, rel=0.02)


@pytest.mark.parametrize(
    ("side", "tokens", "ar_s", "images_per_s", "kv_gb", "tflop", "decoder_s", "ideal"),
    [
        (512, 513, 2.5, (0.40, 6.2, 22.5), 1.7, 26.6, 1.35, (0.5, 8.3, 30)),
        (1024, 1281, 6.3, (0.16, 2.45, 8.8), 3.8, 116.5, 5.9, (0.9, 14, 52)),
        (2048, 4353, 21.5, (0.047, 0.68, 2.2), 11.8, 661.6, 33.4, (1.6, 23, 73)),
    ],
)
def test_floors_of_an_h100(
    side: int,
    tokens: int,
    ar_s: float,
    images_per_s: tuple[float, ...],
    kv_gb: float,
    tflop: float,
    decoder_s: float,
    ideal: tuple[float, ...],
) -> None:
    """The figures agree with those that were worked out by hand beforehand."""
    close = {"rel": 0.05}
    assert gpu.num_ar_tokens(side) + 1 == tokens
    assert gpu.ar_image_s(side, 1) == pytest.approx(ar_s, **close)
    assert [1 / gpu.ar_image_s(side, slots) for slots in (1, 16, 64)] == pytest.approx(images_per_s, **close)
    assert 64 * gpu.kv_bytes(side) / gpu.GB == pytest.approx(kv_gb, **close)
    assert gpu.decoder_step_flops(side) / 1e12 == pytest.approx(tflop, rel=0.005)
    assert gpu.decoder_image_s(side) == pytest.approx(decoder_s, rel=0.01)
    assert [gpu.decoders_per_ar(side, slots, gpu.IDEAL) for slots in (1, 16, 64)] == pytest.approx(ideal, rel=0.08)


@pytest.mark.parametrize(("side", "reached"), [(1024, (0.89, 13.5, 50)), (2048, (1.5, 22, 69))])
def test_ratio_of_workers_as_reached(side: int, reached: tuple[float, ...]) -> None:
    """The same at the shares of bandwidth and FLOP/s that were measured."""
    assert [gpu.decoders_per_ar(side, slots, gpu.REACHED) for slots in (1, 16, 64)] == pytest.approx(reached, rel=0.05)


def test_reference_keys_and_values() -> None:
    """1.875 GiB for a source of 1024x1024, 7.5 GiB for one of 2048x2048."""
    assert [gpu.reference_bytes(side) / 2**30 for side in (1024, 2048)] == [1.875, 7.5]


def test_eight_bits_and_offload_only_take_away() -> None:
    """Each option leaves less on the GPU, both leave least, and more slots fit."""
    for weigh in (gpu.ar_bytes, gpu.decoder_bytes):
        assert weigh(eight_bit=True, offload="idle") < min(weigh(eight_bit=True), weigh(offload="idle")) < weigh()
    for side in SIDES_PX:
        assert 0 < gpu.slots_that_fit(24, side, eight_bit=False) < gpu.slots_that_fit(24, side, eight_bit=True)
