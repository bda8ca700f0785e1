"""Models on the Hugging Face hub: fetched by their name, and sent there without the user's places."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
from huggingface_hub import HfApi, snapshot_download
from PIL import Image

from tagmask.config import EncoderConfig, RunConfig, dump_yaml, load_config, validate
from tagmask.encoders.weights import hub_offline_if_unreachable
from tagmask.errors import DataError, TagmaskError
from tagmask.files import read_record, read_text, write_json, write_text
from tagmask.strict import PLACE, Strict
from tagmask.training.card import without_names
from tagmask.training.folder import MODEL_FILES

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?")
"""user/name or user/name@revision."""
RUNS = "runs"
"""The folder that tagmask's pages put runs in."""
EXAMPLES = "examples.jpg"
HEIGHT = 320
"""Pixels of a picture in it."""


def local(name: str | Path) -> Path:
    """The path itself if it is there, or cannot be a name on the hub; else the folder that the model is fetched into.

    Whatever begins with a folder that is here, or with RUNS, is a path: of one that is mistyped the hub is not asked.
    Raises DataError where there is neither a folder nor such a model, and where the hub cannot be reached.
    """
    if os.path.exists(name) or not NAME.fullmatch(str(name)):  # which takes names of any length
        return Path(name)
    user = str(name).partition("/")[0]
    if user == RUNS or os.path.exists(user):
        return Path(name)
    repository, _, revision = str(name).partition("@")
    with (
        hub_offline_if_unreachable(),
        _said(f"{name}: there is no such folder, and the Hugging Face hub gives no model of that name"),
    ):
        place = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(MODEL_FILES)))
    lacking = [file for file in MODEL_FILES if file != "README.md" and not (place / file).is_file()]
    if lacking:
        raise DataError(
            f"{name}: the Hugging Face hub has it, but without {', '.join(lacking)}. Give the path of a model."
        )
    print(f"Fetched {repository} from the Hugging Face hub, revision {place.name}.", file=sys.stderr)
    return place


def push(
    folder: Path,
    name: str,
    private: bool = True,
    pictures: Sequence[np.ndarray] = (),
    token: str | None = None,
    licence: str | None = None,
) -> str:
    """Send a model's folder with its card to the hub as ``name``; returns its address there.

    private: of a new repository; one that is there and is not so is refused. pictures: uint8 (H,W,3), shown on the
    card. Of the configuration, data and places are left out. Raises DataError where the hub refuses.
    """
    if not NAME.fullmatch(name) or "@" in name:
        raise DataError(f"'{name}' is no name on the Hugging Face hub. Give it as user/name.")
    card = read_text(folder / "README.md").replace('"this folder"', f'"{name}"')
    if licence:
        card = card.replace("license: unknown", f"license: {licence}", 1)
    with TemporaryDirectory() as made, _said(f"{name}: the Hugging Face hub does not take it"):
        place, api = Path(made), HfApi(token=token)
        shutil.copy(folder / "weights.safetensors", place)
        about = read_record(folder / "classes.json")
        write_json(place / "classes.json", about | {"weights_origin": without_names(about["weights_origin"])})
        write_text(place / "config.yaml", dump_yaml(without_places(load_config(folder / "config.yaml"))))
        if pictures:
            _side_by_side(pictures).save(place / EXAMPLES, quality=85)
            card += f"\n![Photos with their masks]({EXAMPLES})\n"
        write_text(place / "README.md", card)
        address = api.create_repo(name, private=private, exist_ok=True)
        if api.repo_info(name).private != private:
            there, way = ("public", "private=False, --public") if private else ("private", "private=True, no --public")
            raise DataError(
                f"{name}: is there and {there}. Take it as it is ({way}), change that on the hub, or take another name."
            )
        # Pictures of an earlier upload go, unless they are sent again.
        api.upload_folder(
            repo_id=name, folder_path=place, commit_message="Upload a tagmask model", delete_patterns=[EXAMPLES]
        )
    return str(address)


def without_places(config: RunConfig) -> RunConfig:
    """The configuration that a model is used with: data, guides, stages, places and all that concerns the machine are
    as by default."""
    kept = _kept(config)
    return validate({key: value for key, value in kept.items() if key not in ("data", "guides", "stages")})


def _kept(part: Strict) -> dict[str, Any]:
    """Values of the fields that hold no place, nested, and decide a result; of weights, the words without a path."""
    values, roles = part.model_dump(mode="json"), part.roles()
    kept: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        inner, role = getattr(part, name), roles[name]
        if isinstance(inner, Strict):
            kept[name] = _kept(inner)
        elif isinstance(part, EncoderConfig) and name == "weights":
            kept[name] = inner if inner in ("auto", "none", "package") else "auto"
        elif not (role.computed or role == PLACE or _is_place(field.annotation)):
            kept[name] = values[name]
    return kept


def _is_place(annotation: Any) -> bool:
    return annotation is Path or any(_is_place(inner) for inner in get_args(annotation))


def _side_by_side(pictures: Sequence[np.ndarray]) -> Image.Image:
    """The pictures in a row, all of one height."""
    images = [Image.fromarray(picture) for picture in pictures]
    small = [image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT)) for image in images]
    row = Image.new("RGB", (sum(image.width for image in small), HEIGHT))
    for i, image in enumerate(small):
        row.paste(image, (sum(other.width for other in small[:i]), 0))
    return row


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Errors of the hub as DataError in one line."""
    try:
        yield
    except TagmaskError:
        raise
    except Exception as error:  # network, names, rights, disk: the hub's errors have no common base
        reason = next((line for line in str(error).splitlines() if line.strip()), "no message")
        raise DataError(
            f"{what} ({type(error).__name__}: {reason}). Check the name, the connection and, for a private one, "
            "the token ('hf auth login'), or give the path of a local model."
        ) from error
