"""The VAE's phases: what the skeleton leaves to the net, and that the decoder's last phase leaves the encoder alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from checkpoints.train import networks, vae
from checkpoints.train.posters import Style, draw
from checkpoints.train.prompts import sample_poster
from checkpoints.train.skeleton import Skeleton


def pictures(count: int) -> torch.Tensor:
    """Posters of 64x128, (count, 3, 64, 128) in -1..1."""
    drawn = []
    for i in range(count):
        rng = random.Random(i)
        drawn.append(torch.from_numpy(draw(sample_poster(rng, 2, 4), Style.sample(rng))[0]).permute(2, 0, 1))
    return torch.stack(drawn).float() / 127.5 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with an adopted encoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("train")
    start = networks.vae()
    start.register_to_config(latents_mean=[0.1 * i for i in range(16)], latents_std=[1 + 0.1 * i for i in range(16)])
    start.save_pretrained(folder / "start")
    vae.adopt(folder, folder / "start")
    return folder


def test_the_net_computes_what_the_skeleton_found() -> None:
    """Installed, the linear path gives almost the skeleton's pictures, from latents that are white."""
    # Given
    torch.manual_seed(0)
    skeleton = Skeleton(networks.vae())
    pixels = pictures(32)
    with torch.no_grad():
        skeleton.down.weight.mul_(3)
        skeleton.up.weight.mul_(3)
        expected = skeleton.decode(skeleton.encode(pixels))

        # When
        skeleton.install(pixels)
        latents = skeleton.net.encode(pixels).latent_dist.mode()
        drawn = skeleton.net.decode(latents).sample

    # Then
    inside = (..., slice(16, -16), slice(16, -16))  # the rim differs: zeros are not the mean
    correlation = torch.corrcoef(torch.stack([expected[inside].flatten(), drawn[inside].flatten()]))[0, 1]
    assert correlation > 0.9
    assert latents.mean((0, 2, 3)).abs().max() < 0.3


def test_the_last_phase_changes_the_decoder_alone(folder: Path) -> None:
    """A DiT that learned from the encoder's latents can use every later decoder."""
    # Given
    before = vae.finished(folder)

    # When
    vae.finish_decoder(folder, minutes=10, max_steps=2)

    # Then
    after = vae.finished(folder)
    assert after.config.latents_mean == before.config.latents_mean == [0.1 * i for i in range(16)]
    assert after.config.latents_std == before.config.latents_std
    changed = {name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed == {"decoder"}
    assert not any(parameter.requires_grad for parameter in after.parameters())


def test_an_encoder_that_others_depend_on_is_not_replaced(folder: Path) -> None:
    """Adopting twice is refused."""
    with pytest.raises(FileExistsError, match="later stages depend on it"):
        vae.adopt(folder, folder / "start")


def test_wide_layers_learn_slowly(tmp_path: Path) -> None:
    """The first step of a run moves weights by the learning rate over their fan-in."""
    # Given
    net = networks.vae()
    run = vae._FanInRun(tmp_path, {"vae": net}, minutes=10, lr=1e-3, warmup_steps=1, weight_decay=0.0)
    wide, narrow = net.decoder.conv_in.weight, net.encoder.conv_in.weight
    before = wide.detach().clone(), narrow.detach().clone()

    # When
    for _ in run.steps():
        run.update(net(pictures(2)).sample.abs().mean(), 2)
        break

    # Then
    assert torch.allclose((wide - before[0]).abs().max(), torch.tensor(1e-3 * 64 / (16 * 9)), rtol=0.01)
    assert torch.allclose((narrow - before[1]).abs().max(), torch.tensor(1e-3), rtol=0.01)


def test_figures_tell_text_from_the_rest() -> None:
    """Whatever the net draws, the whole's error lies between the error of the text and that of the rest."""
    net = networks.vae()
    net.register_to_config(latents_std=[1.0] * 16)

    figures = vae.measure(net, count=2)

    assert min(figures["text"], figures["no text"]) < figures["all"] < max(figures["text"], figures["no text"])
