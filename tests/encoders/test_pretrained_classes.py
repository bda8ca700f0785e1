"""A network's pretrained classes at each position: the same logits as its own, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tagmask.config import EncoderConfig, load_config
from tagmask.encoders import build_encoder
from tagmask.errors import ConfigError, WeightsError
from tagmask.methods import build_method
from tagmask.training import load_model, save_model


def saved(name: str, path: Path, without: str = " ") -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = timm.create_model(name).state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith(without)}, path)
    return state


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "resnet18"])
@pytest.mark.parametrize("stride", [16, 32])
def test_the_mean_over_positions_is_the_networks_own_logits(tmp_path: Path, name: str, stride: int) -> None:
    state = saved(name, tmp_path / "whole.safetensors")
    config = EncoderConfig(name=name, weights=str(tmp_path / "whole.safetensors"), output_stride=stride)
    encoder = build_encoder(config, classes=True).eval()
    own = timm.create_model(name, **({"output_stride": stride} if stride < 32 else {})).eval()
    own.load_state_dict(state)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        (maps,) = encoder(images).maps
        expected = own((images - encoder.mean) / encoder.std)
    assert encoder.channels == [own.num_classes] and encoder.strides == [64 // maps.shape[-2]]
    torch.testing.assert_close(maps.mean((-2, -1)), expected, rtol=1e-4, atol=1e-4)
    assert "whole.safetensors" in encoder.weights_origin


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "mit_b0", "hrnet_w18_small", "vgg11"])
def test_networks_whose_logits_are_no_such_mean_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build_encoder(EncoderConfig(name=name, weights="none", output_stride=32), classes=True)


def test_weights_without_their_classifier_are_refused(tmp_path: Path) -> None:
    saved("resnet18", tmp_path / "bare.safetensors", without="fc.")
    config = EncoderConfig(name="resnet18", weights=str(tmp_path / "bare.safetensors"))
    assert build_encoder(config).channels[-1] == 512
    with pytest.raises(WeightsError, match="classifier"):
        build_encoder(config, classes=True)


def test_the_layout_of_a_resnet_is_kept(tmp_path: Path) -> None:
    config = {"method": {"name": "class_transfer"}, "encoder": {"name": "resnet50", "weights": "none", "layout": "v1"}}
    method = build_method(load_config(config), 2).eval()
    save_model(tmp_path / "model", method, load_config(config), ["a", "b"])
    loaded, images = load_model(tmp_path / "model")[0], torch.rand(1, 3, 64, 64)
    plain = build_encoder(EncoderConfig(name="resnet50", weights="none"), classes=True).eval()
    plain.body.load_state_dict(method.encoder.body.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded.encoder(images).maps[0], method.encoder(images).maps[0])
        assert not torch.allclose(plain(images).maps[0], method.encoder(images).maps[0], atol=1e-5)
