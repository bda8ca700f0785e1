"""Photos whose tags are probably wrong: suspects.csv, from the pretrained encoder's features alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from tagmask import comm
from tagmask.config import RunConfig
from tagmask.data import Collection, Item, read_ahead, tag_vector
from tagmask.encoders import Encoder, build_encoder
from tagmask.encoders.weights import trained_encoder
from tagmask.errors import ConfigError, DataError
from tagmask.evaluate.suspects import Suspect, out_of_fold, suspects
from tagmask.files import csv_text, read_csv, write_text
from tagmask.workflow.opened import Run, default_device

FILE = "suspects.csv"
SIDE = 224
"""Short side that larger photos are reduced to, pixels."""
ASKED = {"given": "given?", "missing": "missing?"}
"""What a row asks about its class, by its column 'tag'."""
HEADER = ["photo", "class", "tag", "score", "odds", "rows of class"]
SHOWN = 5
"""Suspects that are named in the terminal."""


def suspects_of(run: Run, console: Console | None = None) -> dict[str, Any] | None:
    """The first step of ``run``: suspects.csv in its folder, before the encoder learns these tags. Kept if it is there.

    Returns what ``summary`` says of it. None where nothing can be said: the encoder starts from random weights, or
    from a run that has learned from tags before.
    """
    file = run.folder.path / FILE
    naive = run.config.encoder.weights != "none" and trained_encoder(run.config.encoder) is None
    if naive and not run.trained and not file.is_file() and comm.rank() == 0:
        encoder = build_encoder(run.config.encoder).to(default_device(run.config))
        find_suspects(run.collection, encoder, run.config.seed, file, console)
    return summary(file) if file.is_file() else None


def check_tags(collection: Collection, config: RunConfig, file: Path, console: Console | None = None) -> dict[str, Any]:
    """``tagmask check --suspects``: suspects of a data set, by the configuration's encoder. Returns their ``summary``.

    Raises ConfigError for an encoder with random weights, and WeightsError where its weights are not found.
    """
    if config.encoder.weights == "none":
        raise ConfigError("--suspects needs a pretrained encoder: set encoder.weights to 'auto' or to a checkpoint.")
    encoder = build_encoder(config.encoder).to(default_device(config))
    find_suspects(collection, encoder, config.seed, file, console)
    return summary(file)


def find_suspects(
    collection: Collection, encoder: Encoder, seed: int, file: Path, console: Console | None = None
) -> list[Suspect]:
    """Tags of all tagged photos that are probably wrong, the most suspicious first, written to ``file``.

    encoder: pretrained; it is used as it is, in evaluation mode. Photos that cannot be read are left out. One pass
    over the photos and their mirror images. Returns suspects whose 'photo' is the place in ``collection.items``.
    """
    items = [item for item in collection.items if item.tags is not None]
    features, kept = pooled_features(encoder, items, "tags", console)
    found: list[Suspect] = []
    if len(kept) > 1:
        tags = torch.stack([tag_vector(item.tags or (), len(collection.classes)) for item in kept])
        found = suspects(out_of_fold(features, tags, seed=seed), tags)
    place = {item.id: i for i, item in enumerate(collection.items)}
    found = [suspect._replace(photo=place[kept[suspect.photo].id]) for suspect in found]
    write_suspects(file, found, collection)
    return found


def pooled_features(
    encoder: Encoder, items: Sequence[Item], title: str, console: Console | None = None
) -> tuple[Tensor, list[Item]]:
    """float32 (N,D) means of the encoder's last map over a photo and its mirror image, and the N photos.

    Photos that cannot be read are left out. title: of the progress bar.
    """
    console = console or Console(stderr=True)
    device, trains = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    rows, kept = [], []
    with torch.inference_mode():
        for item, photo in track(
            read_ahead(items), title, len(items), console=console, disable=not console.is_terminal
        ):
            if isinstance(photo, DataError):
                continue
            image = _reduced(photo.to(device)[None].float().div(255))
            both = [encoder(view).maps[-1].float().mean((2, 3))[0] for view in (image, image.flip(-1))]
            rows.append(torch.stack(both).mean(0).cpu())
            kept.append(item)
    encoder.train(trains)
    return (torch.stack(rows) if rows else torch.zeros(0, 0)), kept


def _reduced(image: Tensor) -> Tensor:
    factor = SIDE / min(image.shape[-2:])
    if factor >= 1:
        return image
    size = [max(1, round(n * factor)) for n in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def suspected(folder: Path) -> int:
    """Photos that suspects.csv in a run folder lists."""
    file = folder / FILE
    return len({row[0] for row in read_csv(file)[1:]}) if file.is_file() else 0


def write_suspects(file: Path, found: Sequence[Suspect], collection: Collection) -> None:
    """A row for each suspect. Raises DataError."""
    counts = Counter((suspect.tag, suspect.given) for suspect in found)
    rows = [
        [
            collection.items[s.photo].id,
            collection.classes[s.tag],
            "given" if s.given else "missing",
            f"{s.score:.4f}",
            f"{s.odds:.0f}",
            str(counts[s.tag, s.given]),
        ]
        for s in found
    ]
    write_text(file, csv_text([HEADER, *rows]))


def summary(file: Path) -> dict[str, Any]:
    """Of a suspects.csv: its file, the number of rows and of their photos, and the first rows. Raises DataError."""
    rows = read_csv(file)[1:]
    if any(len(row) != len(HEADER) or row[2] not in ASKED for row in rows):
        raise DataError(f"{file}: not a list of suspects: it was changed. Delete it to get it anew.")
    first = [dict(zip(("photo", "class", "tag", "score"), row)) for row in rows[:SHOWN]]
    return {"file": str(file), "rows": len(rows), "photos": len({row[0] for row in rows}), "first": first}


def print_suspects(found: Mapping[str, Any] | None, console: Console) -> None:
    """One line on the suspects; nothing where nobody looked for them."""
    if not found:
        return
    if not found["rows"]:
        console.print(f"No tag looks wrong: {found['file']}", markup=False, highlight=False, soft_wrap=True)
        return
    named = ", ".join(f"{row['photo']}: {row['class']} {ASKED[row['tag']]}" for row in found["first"])
    more = ", …" if found["rows"] > SHOWN else ""
    many = "1 photo may have a wrong tag" if found["photos"] == 1 else f"{found['photos']} photos may have wrong tags"
    line = f"{many} ({named}{more}): {found['file']}"
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
