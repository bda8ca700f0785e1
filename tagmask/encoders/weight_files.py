"""Reads tensors from weights files that strangers made: no code of theirs runs, and nothing grows out of bounds."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tagmask.encoders.mxnet_params import read_params
from tagmask.errors import WeightsError
from tagmask.pickles import check_saved, check_size, most

State = dict[str, Tensor]
NESTS = ("teacher", "student", "state_dict", "model")
PREFIXES = ("module.", "backbone.")
DEEPEST = 8
"""Dictionaries of ``NESTS`` within each other, at most."""
BRANCH = "base_encoder."
"""Prefix of the trained network in MoCo v3's training states, which also hold its average and a predictor."""


class _Ignored:
    """Stands for a number or array of NumPy's beside the tensors. Nothing is built of what the file says."""

    def __init__(self, *parts: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


IGNORED = ("core.multiarray.scalar", "core.multiarray._reconstruct", "dtype", "ndarray")
KNOWN: list[Any] = [
    argparse.Namespace,  # published checkpoints often hold the arguments of their training
    *((_Ignored, f"numpy.{name.replace('core.', core)}") for name in IGNORED for core in ("core.", "_core.")),
]
"""Harmless objects besides tensors that checkpoints may hold."""


def read_state(path: Path, name: str = "") -> State:
    """Tensors of a checkpoint file by name, without outer dictionaries ('teacher', 'model', ...) and prefixes, floats
    as float32. name: that of the encoder. Raises WeightsError that names the file."""
    if not os.path.isfile(path):
        raise WeightsError(
            f"{path}: no such weights file. encoder.weights takes auto, none, package, the path of a .safetensors, "
            ".pth, .pt, .npz or (MXNet's) .params file, or a run folder whose training is finished."
        )
    try:
        content = _content(path)
    except Exception as error:  # the readers raise a dozen types
        raise WeightsError(f"{path}: {_reason(error)}") from error
    state = _tensors(path, content)
    for prefix in PREFIXES:
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    if any(k.startswith(BRANCH) for k in state):
        if not name.startswith("mocov3_"):
            raise WeightsError(
                f"{path}: a training state of MoCo v3, whose networks have other heads than timm's of the same shapes; "
                "set encoder.name=mocov3_vit_small or mocov3_vit_base."
            )
        state = {k.removeprefix(BRANCH): v for k, v in state.items() if k.startswith(BRANCH)}
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".params":
        return read_params(path)
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            check_size(archive, path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    check_saved(path)
    with torch.serialization.safe_globals(KNOWN), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """Why a file was not read and the way out; never the reader's own advice, which may be to run the file's code."""
    text = " ".join(str(error).split())
    named = re.search(r"GLOBAL ([\w.]{1,100})|(reduce for unrecognized|only create new|only build)", text, re.I)
    if isinstance(error, pickle.UnpicklingError) and named:
        what = f" ({named[1]})" if named[1] else ""
        return (
            f"refused, because it holds Python objects besides tensors{what}, which may run code. Save the tensors "
            "alone, as .safetensors, where the file was made, and set encoder.weights to that file."
        )
    if "TorchScript" in text:
        return "a TorchScript program, not weights. Save its state_dict(), and set encoder.weights to that file."
    if "weights_only" in text or not text:
        text = type(error).__name__
    return f"not readable as weights ({text[:200]}). Fetch or save it again, or set encoder.weights to another file."


def _tensors(path: Path, content: Any) -> State:
    """The tensors of a state dictionary by name. Raises WeightsError where there are none, or odd ones."""
    for _ in range(DEEPEST):
        if not isinstance(content, dict):
            raise WeightsError(f"{path}: holds a {type(content).__name__} instead of a dictionary of tensors.")
        if any(isinstance(value, Tensor) for value in content.values()):
            break
        content = next((content[n] for n in NESTS if isinstance(content.get(n), dict)), {}) or content
    state = {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        found = [str(k)[:50] for k in content if isinstance(k, str | int)][:8]
        raise WeightsError(f"{path}: holds no weights by name, only {found}; looked for {', '.join(NESTS)}.")
    for name, value in state.items():
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_nested
        if not plain or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            raise WeightsError(f"{path}: '{name[:100]}' is no plain tensor of numbers; save it as one.")
    if sum(value.numel() for value in state.values()) > most(path):
        raise WeightsError(f"{path}: its tensors claim more values than a file of its size holds. Save it again.")
    return state
