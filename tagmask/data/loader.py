"""Training batches and photos read ahead. A batch depends on the seed and the step, not on workers or interruptions."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from tagmask.data.collection import ColourMap, Item, tag_vector
from tagmask.data.pixels import check_size, read_image, read_mask
from tagmask.data.views import TrainViews
from tagmask.errors import DataError
from tagmask.types import Batch, Sample, View


def seeded(*parts: int | str) -> Generator:
    """A CPU generator whose state is a hash of the parts: streams of different parts are unrelated."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def read_sample(item: Item, classes: int, masks: bool = False, colour_map: ColourMap | None = None) -> Sample:
    """The photo at its own size, with its tags. ``masks=False``: no mask file is opened.

    Raises DataError on an unreadable file and on a mask of another size than its photo.
    """
    image = read_image(item.image)
    mask = None
    if masks and item.mask is not None:
        mask = read_mask(item.mask, classes, colour_map)
        check_size(item.mask, mask, item.image, image)
    tags = None if item.tags is None else tag_vector(item.tags, classes)
    return Sample(image.float() / 255, tags, mask, item.id)


@lru_cache(maxsize=1)
def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The permutation in which an epoch draws the images: a tensor, since each process holds its own."""
    return torch.randperm(images, generator=seeded("order", seed, epoch))


@dataclass
class _Steps(Dataset):
    """The parts of the batch of one step and process, as plain tensors that can cross process borders."""

    items: Sequence[Item]
    classes: int
    views: TrainViews
    batch_size: int
    seed: int
    rank: int
    world: int
    parts: int
    masks: bool
    colour_map: ColourMap | None

    def __getitem__(self, number: int) -> dict[str, Any]:
        step, part = divmod(number, self.parts)
        first = (part * self.world + self.rank) * self.batch_size
        whole = self.parts * self.world * self.batch_size
        entries, samples = [], []
        try:
            for i in range(self.batch_size):
                epoch, place = divmod(step * whole + first + i, len(self.items))
                item = self.items[int(epoch_order(len(self.items), self.seed, epoch)[place])]
                sample = read_sample(item, self.classes, self.masks, self.colour_map)
                entries.append(self.views(sample, seeded("views", self.seed, step, first + i)))
                samples.append(sample)
        except DataError as error:
            # Raised in a worker it would reach the user inside a traceback: send the message instead.
            return {"error": str(error)}
        return {
            "images": torch.stack([e["image"] for e in entries]),
            "tags": torch.stack([s.tags for s in samples if s.tags is not None]),
            "boxes": torch.stack([e["box"] for e in entries]),
            "masks": torch.stack([e["mask"] for e in entries]) if self.masks else None,
            "ids": [s.id for s in samples],
            "views": {name: _stack([e["views"][name] for e in entries]) for name in sorted(self.views.wanted)},
            "first": first,
            "whole": whole,
        }


def _stack(views: list[View]) -> dict[str, Tensor]:
    return {name: torch.stack([getattr(v, name) for v in views]) for name in ("images", "boxes", "affine")}


def _quiet(worker: int) -> None:
    """Deaf to signals that a terminal or a cluster sends to all processes: the main one ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class TrainLoader:
    """Batches of the steps ``start_step`` to ``steps`` − 1, ``batch_size`` images a step in each process.

    A step has ``parts`` batches in turn. Images come in a new permutation each epoch, drawn from (seed, epoch); the
    augmentation is drawn from (seed, step, position in the batch of the step, over all its parts and processes) and
    ``Batch.generator`` from (seed, step). So the batches are the same with any number of workers and after resuming,
    and B images in each of p parts in each of w processes are the B·p·w images of one. ``masks=False``:
    ``Batch.masks`` is None and mask files are never opened.

    Raises DataError without images, on unlabelled images, and with ``masks`` on images that have none; while
    iterating, on files that cannot be read.
    """

    def __init__(
        self,
        items: Sequence[Item],
        collection_classes: int,
        views: TrainViews,
        batch_size: int,
        steps: int,
        seed: int,
        workers: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        masks: bool = False,
        colour_map: ColourMap | None = None,
    ) -> None:
        if not items:
            raise DataError(
                "There are no tagged images to train on. Check data.train, data.val, data.test and the tags."
            )
        bare = [item.id for item in items if item.tags is None]
        if bare:
            raise DataError(f"{len(bare)} images have no tags and cannot train ('{bare[0]}' is the first).")
        without = [item.id for item in items if item.mask is None] if masks else []
        if without:
            raise DataError(
                f"The method reads masks, and {len(without)} training images have none ('{without[0]}' is the first). "
                "Give their folder as data.masks."
            )
        self.start_step, self.seed, self.parts = start_step, seed, parts
        self._loader: DataLoader = DataLoader(
            _Steps(items, collection_classes, views, batch_size, seed, rank, world, parts, masks, colour_map),
            batch_size=None,
            sampler=range(start_step * parts, steps * parts),
            num_workers=workers,
            worker_init_fn=_quiet,
            prefetch_factor=2 if workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
            generator=seeded("workers", seed),  # else iterating would move torch's global generator
        )

    def __iter__(self) -> Iterator[Batch]:
        # One pass is a whole run, so the workers live as long as it does and end with it.
        for number, tensors in enumerate(self._loader, self.start_step * self.parts):
            if "error" in tensors:
                raise DataError(tensors["error"])
            views = {name: View(**of) for name, of in tensors.pop("views").items()}
            yield Batch(views=views, generator=seeded("method", self.seed, number // self.parts), **tensors)
