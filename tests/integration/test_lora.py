"""Adapters on the nets of both halves, beside peft, diffusers and weights merged by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from services.ar_worker.engine import ArEngine, GridRequest
from services.ar_worker.weights import ArModel, load_ar_model
from services.decoder_worker.engine import DecoderEngine, ImageRequest
from services.decoder_worker.weights import DecoderModel, load_decoder_model
from shared.errors import PermanentWorkError, StartupError
from shared.grid import TokenGrid
from shared.lora import Lora, LoraChoice
from shared.net_loading import NetOptions
from tests.adapter_files import bare_net, randomise, write_adapter
from tests.reference import pipeline_of
from tests.velocity import velocity

INK = LoraChoice("ink")
NEON = LoraChoice("neon", 0.5)

PROMPT = 'a "B"'

GRID_REQUEST = GridRequest(PROMPT, TokenGrid(2, 3), seed=3, temperature=0.9, top_p=0.75)

CONFIGS = {
    "ar": {
        "ink": LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"]),
        "neon": LoraConfig(r=2, lora_alpha=8, target_modules=["o_proj", "q_proj"], use_rslora=True, rank_pattern={"o_proj": 3}),
    },
    "decoder": {
        "ink": LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_out.0"]),
        "neon": LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "ff.net.2"], use_rslora=True, alpha_pattern={"to_q": 5}),
    },
}
"""Two adapters that share a layer, and neither of which has all layers of the other."""


@pytest.fixture(scope="module")
def lora_dir(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ink` and `neon` for both halves, `wash` for the decoder in diffusers' format, and `torn`, whose decoder half broke off."""
    root = tmp_path_factory.mktemp("loras")
    torch.manual_seed(0)
    for half, configs in CONFIGS.items():
        for name, config in configs.items():
            write_adapter(miniature, half, root / name, config)
    net = bare_net(miniature, "decoder")
    net.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_k"]), "wash")
    randomise(net)
    net.save_lora_adapter(root / "wash" / "decoder", "wash")
    torn = root / "torn" / "decoder" / "adapter_model.safetensors"
    torn.parent.mkdir(parents=True)
    torn.write_bytes((root / "ink" / "decoder" / "adapter_model.safetensors").read_bytes()[:-100])
    (torn.parent / "adapter_config.json").write_bytes((root / "ink" / "decoder" / "adapter_config.json").read_bytes())
    return root


@pytest.fixture(scope="module")
def ar(miniature: Path, lora_dir: Path) -> ArModel:
    return load_ar_model(miniature, "cpu", "float32", NetOptions(lora_dir=str(lora_dir)))


@pytest.fixture(scope="module")
def decoder(miniature: Path, lora_dir: Path) -> DecoderModel:
    return load_decoder_model(miniature, "cpu", "float32", NetOptions(lora_dir=str(lora_dir)))


@pytest.fixture(params=["ar", "decoder"])
def half(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(half: str, request: pytest.FixtureRequest) -> Any:
    model = request.getfixturevalue(half)
    model.use_lora(())
    return model


def net_of(model: ArModel | DecoderModel) -> Any:
    return model.net if isinstance(model, ArModel) else model.transformer


def run(net: Any) -> Tensor:
    """What the net says of a fixed input: logits, or velocities."""
    if not (hasattr(net, "lm_head") or isinstance(net, PeftModel)):
        return velocity(net)
    with torch.inference_mode():
        ids = torch.randint(0, 200, (1, 12), generator=torch.Generator().manual_seed(1))
        hidden = net.model.language_model(inputs_embeds=net.model.language_model.embed_tokens(ids)).last_hidden_state
        logits: Tensor = net.lm_head(hidden)
        return logits


def merged(checkpoint: Path, half: str, lora_dir: Path, lora: Lora) -> Any:
    """A net of its own with the adapters added to its weights: W + scale * alpha / r * B A."""
    deltas: dict[str, Tensor] = {}
    for choice in lora:
        adapted = PeftModel.from_pretrained(bare_net(checkpoint, half), lora_dir / choice.name / half)
        for path, module in adapted.base_model.model.named_modules():
            if hasattr(module, "get_delta_weight"):
                deltas[path] = deltas.get(path, torch.tensor(0.0)) + choice.scale * module.get_delta_weight("default")
    net = bare_net(checkpoint, half)
    with torch.no_grad():
        for path, delta in deltas.items():
            net.get_submodule(path).weight.add_(delta)
    return net


@pytest.mark.parametrize("name", ["ink", "neon"])
def test_an_adapter_acts_as_in_peft(model: Any, half: str, lora_dir: Path, miniature: Path, name: str) -> None:
    """Loaded by name, it gives bit for bit what peft's own loading gives, rank and alpha patterns included."""
    reference = PeftModel.from_pretrained(bare_net(miniature, half), lora_dir / name / half).base_model.model
    bare = run(net_of(model))

    model.use_lora((LoraChoice(name),))

    assert torch.equal(run(net_of(model)), run(reference))
    assert not torch.allclose(run(net_of(model)), bare, atol=1e-3)


def test_an_adapter_of_diffusers_acts_as_in_diffusers(decoder: DecoderModel, lora_dir: Path, miniature: Path) -> None:
    """The other format of the decoder half, beside the library that wrote it."""
    reference = bare_net(miniature, "decoder")
    reference.load_lora_adapter(
        lora_dir / "wash" / "decoder", prefix=None, weight_name="pytorch_lora_weights.safetensors", use_safetensors=True
    )

    decoder.use_lora((LoraChoice("wash"),))

    assert torch.equal(run(decoder.transformer), run(reference))


@pytest.mark.parametrize("lora", [(INK,), (NEON,), (INK, NEON), (LoraChoice("ink", -1.5), LoraChoice("neon", 2.0))])
def test_adapters_add_up(model: Any, half: str, lora_dir: Path, miniature: Path, lora: Lora) -> None:
    """One or two, scaled, equal the weights they would be merged into."""
    model.use_lora(lora)

    torch.testing.assert_close(run(net_of(model)), run(merged(miniature, half, lora_dir, lora)), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [(INK,), (INK, NEON)])
def test_the_bare_model_comes_back_exactly(model: Any, lora: Lora) -> None:
    """After adapters have acted, `()` gives the very modules and bits of before."""
    net = net_of(model)
    modules, bare = dict(net.named_modules()), run(net)

    model.use_lora(lora)
    assert model.adapters.is_active
    assert not torch.equal(run(net), bare)

    model.use_lora(())
    assert not model.adapters.is_active
    assert torch.equal(run(net), bare)
    assert dict(net.named_modules()) == modules


@pytest.mark.parametrize("lora", [(LoraChoice("ink", 0.0),), (LoraChoice("ink", 0.5), LoraChoice("ink", -0.5))])
def test_scale_zero_is_the_bare_model(model: Any, lora: Lora) -> None:
    """An adapter that is to act with no strength does not act at all, bit for bit; also when its scales add up to none."""
    bare = run(net_of(model))

    model.use_lora(lora)

    assert torch.equal(run(net_of(model)), bare)
    assert not model.adapters.is_active


def test_the_same_adapters_again_cost_nothing(model: Any) -> None:
    """A group of equals asks before every step; nothing is touched the second time."""
    model.use_lora((INK, NEON))
    modules = list(net_of(model).modules())

    model.use_lora((INK, NEON))

    assert all(before is after for before, after in zip(modules, net_of(model).modules(), strict=True))


@pytest.mark.parametrize(("name", "code"), [("unknown", "unknown_lora"), ("torn", "lora_broken")])
def test_an_adapter_that_cannot_act_fails_its_request_only(decoder: DecoderModel, name: str, code: str) -> None:
    """The error names it, and what acted before goes on to, whatever stood beside it in the request."""
    decoder.use_lora((INK,))
    before = run(decoder.transformer)

    with pytest.raises(PermanentWorkError, match=name) as caught:
        decoder.use_lora((LoraChoice("neon"), LoraChoice(name)))

    assert caught.value.code == code
    assert torch.equal(run(decoder.transformer), before)
    decoder.use_lora((NEON,))
    assert not torch.equal(run(decoder.transformer), before)


def test_the_half_that_an_adapter_leaves_alone_is_bare(ar: ArModel) -> None:
    """An adapter of the decoder alone is known to the AR half, and changes nothing there; a broken decoder half neither."""
    ar.use_lora(())
    bare = run(ar.net)

    ar.use_lora((LoraChoice("torn"), LoraChoice("wash")))

    assert torch.equal(run(ar.net), bare)
    assert not ar.adapters.is_active


def test_an_adapter_of_other_layers_is_refused(miniature: Path, tmp_path: Path) -> None:
    """The vision tower's ids are shared by all requests with an image, so no adapter may change it."""
    adapted = get_peft_model(bare_net(miniature, "ar"), LoraConfig(r=2, target_modules=["qkv"]))
    adapted.save_pretrained(tmp_path / "eye" / "ar")

    model = load_ar_model(miniature, "cpu", "float32", NetOptions(lora_dir=str(tmp_path)))

    with pytest.raises(PermanentWorkError, match=r"'eye'.*visual.*no layer that may be adapted"):
        model.use_lora((LoraChoice("eye"),))


def test_adapters_that_need_too_much_memory_refuse_the_start(miniature: Path, lora_dir: Path) -> None:
    """The bound is a setting, and named."""
    with pytest.raises(StartupError, match="more than GLMQ_LORA_MEMORY_GIB=1e-06"):
        load_decoder_model(miniature, "cpu", "float32", NetOptions(lora_dir=str(lora_dir), lora_memory_gib=1e-6))


@dataclass(frozen=True)
class Reference:
    """The reference pipeline around the same nets: tokens and pixels of one small picture."""

    ar: ArModel
    decoder: DecoderModel
    pipeline: Any

    def write(self, lora: Lora) -> Tensor:
        """[1, patches] prior tokens."""
        self.ar.use_lora(lora)
        with torch.inference_mode():
            tokens, _, _ = self.pipeline.generate_prior_tokens(
                prompt=PROMPT, height=64, width=96, device=torch.device("cpu"), generator=torch.Generator().manual_seed(3)
            )
        return cast(Tensor, tokens)

    def paint(self, tokens: Tensor, lora: Lora) -> Tensor:
        """[3, height, width] pixels."""
        self.decoder.use_lora(lora)
        with torch.inference_mode():
            result = self.pipeline(
                prompt=PROMPT,
                prior_token_ids=tokens,
                height=64,
                width=96,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(4),
                output_type="pt",
            )
        return cast(Tensor, result.images[0])


@pytest.fixture
def reference(ar: ArModel, decoder: DecoderModel) -> Reference:
    return Reference(ar, decoder, pipeline_of(ar, decoder))


def test_tokens_and_pixels_change_and_come_back(reference: Reference) -> None:
    """Through the whole reference pipeline: the AR half changes tokens, the decoder half pixels, and without them both are as before."""
    tokens = reference.write(())
    pixels = reference.paint(tokens, ())

    assert not torch.equal(reference.write((INK,)), tokens)
    assert not torch.allclose(reference.paint(tokens, (INK,)), pixels, atol=1e-3)
    assert torch.equal(reference.write(()), tokens)
    assert torch.equal(reference.paint(tokens, ()), pixels)


@pytest.fixture
def together(ar: ArModel, decoder: DecoderModel) -> Iterator[tuple[ArEngine, DecoderEngine]]:
    """Both engines, on nets that the reference beside them uses too: it is asked when they are idle."""
    engines = ArEngine(ar), DecoderEngine(decoder)
    for engine in engines:
        engine.start()
    yield engines
    for engine in engines:
        engine.close()


def test_engines_serve_requests_with_and_without_adapters_at_once(together: tuple[ArEngine, DecoderEngine], reference: Reference) -> None:
    """Each gets what it would get alone from the reference with its adapters, whatever its neighbours wear."""
    ar_engine, decoder_engine = together
    loras: tuple[Lora, ...] = ((INK,), (), (INK, NEON))
    grids = [ar_engine.submit(dataclasses.replace(GRID_REQUEST, lora=lora), _silent, _never) for lora in loras]
    tokens = [torch.tensor(future.result(120).token_ids) for future in grids]
    image_request = ImageRequest(PROMPT, GRID_REQUEST.grid, tokens[1].tolist(), seed=4, steps=2, guidance_scale=1.5)
    images = [decoder_engine.submit(dataclasses.replace(image_request, lora=lora), _silent, _never) for lora in loras]
    pixels = [future.result(120).pixels for future in images]

    prior = [ids.repeat_interleave(2, 0).repeat_interleave(2, 1).view(1, -1) for ids in tokens]
    for lora, ids, drawn in zip(loras, prior, pixels, strict=True):
        assert torch.equal(ids, reference.write(lora))
        torch.testing.assert_close(drawn, reference.paint(prior[1], lora), atol=1e-4, rtol=0)


def test_an_unknown_adapter_fails_alone(together: tuple[ArEngine, DecoderEngine]) -> None:
    """The engine goes on with those beside it."""
    ar_engine, _ = together
    wrong, right = (
        ar_engine.submit(dataclasses.replace(GRID_REQUEST, lora=lora), _silent, _never) for lora in ((LoraChoice("nobody"),), (INK,))
    )

    with pytest.raises(PermanentWorkError, match="'nobody'"):
        wrong.result(120)
    assert len(right.result(120).token_ids) == 2


def _silent(phase: str, done: int, total: int) -> None:
    """Progress nobody hears of."""


def _never() -> bool:
    return False
