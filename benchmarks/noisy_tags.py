"""How well ``suspects.csv`` finds wrong tags: tags of clean data are made wrong, and the list is compared with them.

A share of the given tags is drawn without replacement. In turn, one is replaced by a class that the photo does not
show, the next is taken away, and beside the third a class that the photo does not show is added. Classes are drawn
evenly. So a share of 10 % of the tags makes one and a third times as many wrong entries of photo and class: half of
them are given, half are missing.

    python benchmarks/noisy_tags.py photos -c msrc14                          # precision and recall of the list
    python benchmarks/noisy_tags.py photos -c msrc14 --seeds 0 --shares 0.1 --write noisy
    tagmask run photos --tags noisy/0.1_0_noisy.csv ...                       # what wrong tags cost
    tagmask run photos --tags noisy/0.1_0_acted.csv ...                       # ... and what acting on the list saves
    python benchmarks/noisy_tags.py photos -c msrc14 --seeds 0 --shares 0.1 --run run_on_noisy_tags

``--run`` also makes the list from the scores of a classifier that was trained on these very tags. 'acted' takes the
list at its word: given suspects are taken away, missing ones are added. Tags of other photos stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tagmask.config import load_config
from tagmask.data import Collection, Item, read_image, tag_vector
from tagmask.encoders import build_encoder
from tagmask.evaluate.suspects import Suspect, out_of_fold, suspects
from tagmask.files import csv_text, write_text
from tagmask.workflow import Run
from tagmask.workflow.opened import open_collection
from tagmask.workflow.suspects import pooled_features


def noisy(tags: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Tags (N,C) of 0/1 with ``share`` of the given ones made wrong. Equal seeds give equal tags."""
    rng = np.random.default_rng(seed)
    given = np.argwhere(tags > 0)
    result = tags.copy()
    for turn, (photo, tag) in enumerate(given[rng.permutation(len(given))[: round(share * len(given))]]):
        absent = np.flatnonzero((tags[photo] == 0) & (result[photo] == 0))
        if turn % 3 < 2:
            result[photo, tag] = 0
        if turn % 3 != 1 and len(absent):
            result[photo, rng.choice(absent)] = 1
    return result


def compared(found: Sequence[Suspect], wrong: np.ndarray, given: np.ndarray) -> str:
    """Precision and recall of a list, of both kinds and of each, as the cells of a table."""
    cells = []
    for kind in (None, True, False):
        listed = [s for s in found if kind in (None, s.given)]
        hits = sum(bool(wrong[s.photo, s.tag]) for s in listed)
        there = wrong.sum() if kind is None else (wrong & ((given > 0) == kind)).sum()
        cells.append(f"{hits} of {len(listed)} listed, {there} wrong")
        if kind is None:
            cells.append(f"precision {hits / max(len(listed), 1):.2f}, recall {hits / max(there, 1):.2f}")
    return " | ".join(cells)


def write_tags(path: Path, collection: Collection, items: Sequence[Item], tags: np.ndarray) -> None:
    """A table of tags of all photos, in which ``items`` have ``tags`` (N,C)."""
    changed = {item.id: np.flatnonzero(row) for item, row in zip(items, tags)}
    rows = [
        (item.id, ";".join(collection.classes[tag] for tag in changed.get(item.id, item.tags or ())))
        for item in collection.items
        if item.tags is not None
    ]
    write_text(path, csv_text([("image", "tags"), *rows]))


def acted(tags: np.ndarray, found: Sequence[Suspect]) -> np.ndarray:
    """Tags (N,C) as the list says that they should be."""
    result = tags.copy()
    for suspect in found:
        result[suspect.photo, suspect.tag] = 0 if suspect.given else 1
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--split", default="train")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.0, 0.05, 0.1])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--run", type=Path, help="a run that was trained on the noisy tags of one share and seed")
    parser.add_argument("--write", type=Path, help="folder for tables of tags")
    given = parser.parse_args()
    config = load_config(*given.config, {"data": {"root": given.data}}, overrides=given.set)
    collection = open_collection(config)
    features, items = pooled_features(build_encoder(config.encoder), collection.split(given.split))
    clean = torch.stack([tag_vector(item.tags or (), len(collection.classes)) for item in items]).numpy()
    own = None
    if given.run is not None:
        inference = Run(given.run).inference
        own = torch.stack([inference.class_scores(read_image(item.image)) for item in items]).numpy()  # type: ignore[misc]
    for share in given.shares:
        for seed in given.seeds if share else given.seeds[:1]:
            tags = noisy(clean, share, seed)
            found = suspects(out_of_fold(features, tags, seed=seed), tags)
            print(f"{share:g} | {seed} | {compared(found, tags != clean, tags)}", flush=True)
            if own is not None:
                print(f"{share:g} | {seed}, own scores | {compared(suspects(own, tags), tags != clean, tags)}")
            if given.write is not None:
                write_tags(given.write / f"{share:g}_{seed}_noisy.csv", collection, items, tags)
                write_tags(given.write / f"{share:g}_{seed}_acted.csv", collection, items, acted(tags, found))


if __name__ == "__main__":
    main()
