"""Training batches and photos read ahead. A batch depends on the seed and the step, not on workers or interruptions."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from tagmask.data.collection import ColourMap, Item, tag_vector
from tagmask.data.pixels import read_image, read_mask
from tagmask.data.views import TrainViews
from tagmask.errors import DataError
from tagmask.types import Batch, Sample, View


def seeded(*parts: int | str) -> Generator:
    """A CPU generator whose state is a hash of the parts: streams of different parts are unrelated."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:4], "little"))


class SampleSet(Dataset):
    """Samples at the photos' own sizes, by position. ``masks=False``: mask files are never opened.

    Raises DataError on unreadable files and on a mask of another size than its photo.
    """

    def __init__(self, items: Sequence[Item], C: int, masks: bool = False, colour_map: ColourMap | None = None) -> None:
        self.items, self.C, self.masks, self.colour_map = list(items), C, masks, colour_map

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Sample:
        item = self.items[position]
        image = read_image(item.image)
        mask = None
        if self.masks and item.mask is not None:
            mask = read_mask(item.mask, self.C, self.colour_map)
            check_size(item, image, mask)
        tags = None
        if item.tags is not None:
            tags = tag_vector(item.tags, self.C)
        return Sample(image.float() / 255, tags, mask, item.id)


def check_size(item: Item, image: Tensor, mask: Tensor) -> None:
    """Raise DataError when a mask is not of its photo's size; names a turned photo as the likely cause."""
    size, other = tuple(image.shape[-2:]), tuple(mask.shape)
    if size != other:
        turned = " The photo is shown turned (EXIF); save the mask turned the same way." if size == other[::-1] else ""
        raise DataError(
            f"{item.mask}: {other[1]}x{other[0]} pixels, its photo {item.image} has {size[1]}x{size[0]}.{turned}"
        )


class _Steps(Dataset):
    """The parts of the batch of one step and process, as plain tensors that can cross process borders."""

    def __init__(
        self, samples: SampleSet, views: TrainViews, batch_size: int, seed: int, rank: int, world: int
    ) -> None:
        self.samples, self.views = samples, views
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self._order: tuple[int, Tensor] | None = None

    def image_at(self, draw: int) -> int:
        """Position of the image that is drawn as number ``draw`` in the run: a fresh permutation each epoch."""
        epoch, place = divmod(draw, len(self.samples))
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.samples), generator=seeded("order", self.seed, epoch))
            self._order = (epoch, order)
        return int(self._order[1][place])

    def __getitem__(self, step: int) -> dict[str, Any]:
        entries, samples = [], []
        try:
            for i in range(self.batch_size):
                position = self.rank * self.batch_size + i
                sample = self.samples[self.image_at(step * self.batch_size * self.world + position)]
                entries.append(self.views(sample, seeded("views", self.seed, step, position)))
                samples.append(sample)
        except DataError as error:
            # Raised in a worker it would reach the user inside a traceback: send the message instead.
            return {"error": str(error)}
        masks = [e["mask"] for e in entries]
        return {
            "images": torch.stack([e["image"] for e in entries]),
            "tags": torch.stack([s.tags for s in samples if s.tags is not None]),
            "boxes": torch.stack([e["box"] for e in entries]),
            "masks": torch.stack(masks) if self.samples.masks else None,
            "ids": [s.id for s in samples],
            "views": {name: _stack([e["views"][name] for e in entries]) for name in sorted(self.views.wanted)},
        }


def _stack(views: list[View]) -> dict[str, Tensor]:
    return {name: torch.stack([getattr(v, name) for v in views]) for name in ("images", "boxes", "affine")}


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class TrainLoader:
    """Batches of the steps ``start_step`` to ``steps`` − 1, ``batch_size`` images a step in each process.

    Images come in a new permutation each epoch, drawn from (seed, epoch); the augmentation is drawn from (seed,
    step, position in the batch over all processes) and ``Batch.generator`` from (seed, step, rank). So the batches
    are the same with any number of workers and after resuming, and B images in each of w processes are the B·w
    images of one. ``masks=False``: ``Batch.masks`` is None and mask files are never opened.

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
        self.steps, self.start_step, self.seed, self.rank = steps, start_step, seed, rank
        samples = SampleSet(items, collection_classes, masks, colour_map)
        self._loader: DataLoader = DataLoader(
            _Steps(samples, views, batch_size, seed, rank, world),
            batch_size=None,
            sampler=range(start_step, steps),
            num_workers=workers,
            worker_init_fn=_one_thread,
            prefetch_factor=2 if workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
            generator=seeded("workers", seed),  # else iterating would move torch's global generator
        )

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[Batch]:
        # One pass is a whole run, so the workers live as long as it does and end with it.
        error = None
        for step, parts in enumerate(self._loader, self.start_step):
            error = parts.get("error")
            if error is not None:
                break
            views = {name: View(**tensors) for name, tensors in parts.pop("views").items()}
            yield Batch(views=views, generator=seeded("method", self.seed, step, self.rank), **parts)
        if error is not None:
            raise DataError(error)


def read_ahead(items: Sequence[Item], workers: int = 2) -> Iterator[tuple[Item, Tensor | DataError]]:
    """Items with their photos, uint8 (3,H,W), in order, decoded ahead by ``workers`` threads (0: when asked for).

    Pillow decodes outside Python's lock, so threads suffice. A photo that cannot be read comes as its DataError.
    """

    def read(item: Item) -> tuple[Item, Tensor | DataError]:
        try:
            return item, read_image(item.image)
        except DataError as error:
            return item, error

    if workers == 0:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(items)
        waiting = deque(pool.submit(read, item) for item in islice(rest, 2 * workers))
        try:
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(read, item) for item in islice(rest, 1))
                yield found
        finally:
            for future in waiting:
                future.cancel()
