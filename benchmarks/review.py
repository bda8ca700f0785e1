"""What a review is worth: the last segmenter of a run is trained again, with true masks of some photos.

    python benchmarks/review.py runs/first runs/review_worth --photos 10 20 40

The run has stages and true masks of its training photos, which stand for what a person would draw. Photos are chosen
as 'tagmask review --suggest' does, or at random (by --seed). Their true masks replace those that the last segmenter
learned from; all else is as in the run. Scores are of test, without tags, at one scale. What is trained is kept.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import sys
from pathlib import Path

from rich.console import Console

from tagmask.data import read_mask, write_mask
from tagmask.workflow import Run, evaluate, suggest, train
from tagmask.workflow.quality import FILE as QUALITY

ONE_SCALE = ["label.scales=[1.0]", "label.flip=false", "label.crf=none", "label.refine_masks=none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--ways", nargs="+", default=["suggested", "random"])
    parser.add_argument("--seed", type=int, default=0, help="of the random choice")
    given = parser.parse_args()
    first, console = Run(given.run), Console()
    if not (first.folder.path / QUALITY).is_file():
        evaluate(first, "train", ["quality"], console=console)
    rows = [("reviewed", 0, score(first.last))]
    print(*rows[0], flush=True)
    for count in sorted(given.photos, reverse=True):
        for way in given.ways:
            rows.append(
                (way, count, score(taught(first, given.out / f"{way}{count}", photos(first, way, count, given.seed))))
            )
            print(*rows[-1], flush=True)
    table = csv.writer(sys.stdout)
    table.writerow(["photos chosen", "number", "mIoU on test"])
    table.writerows(rows)


def photos(first: Run, way: str, count: int, seed: int) -> list[str]:
    """Ids of the photos that are reviewed."""
    if way == "suggested":
        return [found.photo for found in suggest(first, count)]
    ids = sorted(item.id for item in first.collection.split("train"))
    return random.Random(seed).sample(ids, count)


def taught(first: Run, place: Path, ids: list[str]) -> Run:
    """The last segmenter, trained with the true masks of these photos."""
    config = first.last.config
    masks = place / "masks"
    if not masks.is_dir():
        shutil.copytree(str(config.data.train_masks), masks)
    for id in ids:
        item = first.collection.item(id)
        assert item.mask is not None
        write_mask(
            masks / f"{id}.png", read_mask(item.mask, len(first.collection.classes), first.collection.colour_map)
        )
    data = config.data.model_copy(update={"train_masks": masks})
    other = Run(place / "run", config.model_copy(update={"data": data}))
    train(other, resume=True, console=Console(stderr=True))
    return other


def score(run: Run) -> float:
    """mIoU on test, in per cent."""
    return round(100 * evaluate(run, "test", ["segmenter"], ONE_SCALE)[0]["miou"], 1)


if __name__ == "__main__":
    main()
