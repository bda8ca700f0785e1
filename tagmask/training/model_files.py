"""The ``model/`` folder: weights as safetensors, configuration, classes and a card. What others load."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tagmask.config import RunConfig, dump_yaml, load_config
from tagmask.errors import DataError
from tagmask.files import of_system, read_record, write_json, write_text, written
from tagmask.methods import Method, build_method
from tagmask.training.card import write_card
from tagmask.training.folder import FORMAT, check_format


def save_model(folder: Path, method: Method, config: RunConfig, classes: list[str], origin: str | None = None) -> None:
    """Write weights.safetensors, config.yaml, classes.json and README.md; without what only training reads.

    origin: of the weights that training started from, for notes and stamps; default: the method's own word.
    """
    state = {k: v for k, v in method.state_dict().items() if _in_use(method, k)}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    header = {"format": "pt", "method": config.method.name, "encoder": config.encoder.name}
    with written(folder / "weights.safetensors") as part:
        save_file(tensors, part, metadata=header)
    write_text(folder / "config.yaml", dump_yaml(config))
    about: dict[str, Any] = {
        "format": FORMAT,
        "classes": classes,
        "weights_origin": origin or method.origin(),
        "digest": digest(tensors),
        "supervision": supervision(method, config) + (" + review" if config.data.reviewed else ""),
        "encoder": method.used_encoder,
        "parameters": sum(p.numel() for name, p in method.named_parameters() if _in_use(method, name)),
    }
    write_json(folder / "classes.json", about)
    write_card(folder, config, about)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """12 hex digits of the SHA-256 of named tensors: of values, not of a file, whose header has no fixed order."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes() if tensors[name].numel() else b"")
    return found.hexdigest()[:12]


def load_model(
    folder: Path, device: torch.device | str = "cpu", config: RunConfig | None = None
) -> tuple[Method, RunConfig, list[str]]:
    """Method in eval mode, configuration and class names.

    config: in the place of the saved one, from which it may differ in settings of use. Raises DataError naming what is
    missing or does not fit, ConfigError as the method does.
    """
    weights = folder / "weights.safetensors"
    if not weights.is_file():
        again = f"tagmask train --resume -o {shlex.quote(str(folder.parent))}"
        raise DataError(f"{folder}: no weights.safetensors. Is training finished? '{again}' goes on.")
    config = config or load_config(folder / "config.yaml")
    about = read_record(folder / "classes.json")
    check_format(folder / "classes.json", about)
    bare = config.model_copy(deep=True)
    bare.encoder.weights = "none"
    built = build_method(bare, len(about["classes"]))
    built.encoder.weights_origin = about["weights_origin"]
    for part in built.training_only:
        setattr(built, part, None)
    tensors = read_weights(weights, about["digest"])
    try:
        built.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{weights}: does not fit method '{config.method.name}' in config.yaml ({error}).") from error
    return built.eval().to(device), config, about["classes"]


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of a model, whose digest is the expected one. Raises DataError that names the file."""
    try:
        tensors = load_file(path)
        why = "" if digest(tensors) == expected else "its digest is not the one in classes.json"
    except OSError as error:
        raise of_system(error, path) from error
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        why = str(error)
    if why:
        again = f"tagmask train --resume -o {shlex.quote(str(path.parent.parent))}"
        raise DataError(
            f"{path}: is damaged ({why}). Copy it again, or delete it and make it from the last checkpoint: {again}"
        )
    return tensors


def _in_use(method: Method, key: str) -> bool:
    return key.partition(".")[0] not in method.training_only


def supervision(method: Method, config: RunConfig) -> str:
    """What a method learns from: 'tags', 'masks' (that something else made) or 'true masks'; 'tags of true masks' where
    the tags are the classes in the true masks (``data.tags_from``)."""
    if method.reads_masks:
        return "masks" if config.data.train_masks else "true masks"
    return "tags of true masks" if config.data.tags_from == "masks" else "tags"
