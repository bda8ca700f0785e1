"""What a trained method makes of one photo, each result once, and the pass over many photos."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from tagmask.cam import pseudo_labels
from tagmask.data import Item, read_ahead, tag_vector
from tagmask.data.pixels import Notes
from tagmask.errors import DataError
from tagmask.label.infer import Inference, best_labels, values_in
from tagmask.label.share import Blocks, share
from tagmask.label.writer import LabelWriter
from tagmask.types import IGNORE

T = TypeVar("T")


class Look:
    """A trained method's view of one photo. A result is computed when it is first asked for, and kept.

    photo: uint8 (3,H,W). tags: (C,) of 0/1, or None where nobody looked. Maps lie on the working grid (h,w) of
    ``Inference``, label maps have the photo's size.
    """

    def __init__(self, inference: Inference, photo: Tensor, tags: Tensor | None = None) -> None:
        self.inference, self.photo, self.tags = inference, photo, tags

    @cached_property
    def class_scores(self) -> Tensor | None:
        """(C,) probabilities that a class is in the photo; None for a method without a classifier."""
        return self.inference.class_scores(self.photo)

    @cached_property
    def cams(self) -> Tensor:
        """(C,h,w) class activation maps in [0,1]; with tags, other classes are 0."""
        return self.inference.cams(self.photo, self.tags)

    @cached_property
    def background_factor(self) -> Tensor | None:
        """(1,1,s,s) that ``guides`` multiply the background's score by. Needs tags."""
        return self.inference.background_factor(self.photo) if len(self._given.nonzero()) else None

    @cached_property
    def refined(self) -> Tensor:
        """(C+1,h,w) scores of the background and the tagged classes after refinement. Needs tags."""
        return self.inference.refine(self.photo, self.cams, self._given, self.background_factor)

    @cached_property
    def refined_labels(self) -> Tensor:
        """uint8 (H,W) of the largest refined score."""
        return best_labels(self.refined, self.photo)

    @cached_property
    def logits(self) -> Tensor:
        """(C+1,h,w) of the segmenter."""
        return self.inference.logits(self.photo)[0]

    @cached_property
    def limited(self) -> Tensor:
        """(C+1,h,w) probabilities of the segmenter, limited to the tagged classes. Needs tags."""
        return self.inference.probabilities(self.photo, self.logits, self._given, self.background_factor)

    @cached_property
    def prediction(self) -> tuple[Tensor, Tensor]:
        """Label map uint8 (H,W) without tags, 255 where unsure, and the probabilities (C+1,h,w)."""
        scores = self.inference.probabilities(self.photo, self.logits)
        return best_labels(scores, self.photo, self.inference.config.unsure), scores

    @cached_property
    def mask(self) -> tuple[Tensor, Tensor]:
        """Label map uint8 (H,W) of the tagged photo, 255 where unsure, and the scores (C+1,h,w) it came from.

        Where the segmenter's masks are completed, a class that it finds nowhere is in the map and not in the scores.
        """
        cfg = self.inference.config
        if self.inference.source == "segmenter":
            scores = self.limited
            if self.inference.mask_refiner is not None:
                scores = self.inference.refine_masks(self.photo, scores, self._given)
            labels = best_labels(scores, self.photo, cfg.unsure)
            return (self._completed(labels, scores) if self.inference.completes else labels), scores
        if cfg.high is None or cfg.low is None:
            return self.refined_labels, self.refined
        given, images = self._given.to(self.inference.device), self.inference.batch(self.photo, cfg.max_side)
        with torch.inference_mode():
            labels = pseudo_labels(
                self.cams[None],
                given[None],
                cfg.high,
                cfg.low,
                self.inference.refiner,
                images,
                factor=self.background_factor,
            )
        labels = F.interpolate(labels[None].byte(), size=self.photo.shape[-2:], mode="nearest-exact")[0, 0]
        return labels, self.refined

    def _completed(self, labels: Tensor, scores: Tensor) -> Tensor:
        """The segmenter's labels (H,W). Tagged classes that win nowhere get the refined CAMs' pixels, where background
        or nothing sure stands."""
        wanted = {tag + 1 for tag in self._given.nonzero().flatten().tolist()}
        lacking = wanted - values_in(labels)
        if lacking and self.inference.config.unsure:  # what is found, but nowhere surely, stays unsure
            lacking -= values_in(best_labels(scores, self.photo))
        if not lacking:
            return labels
        taken = torch.isin(self.refined_labels, torch.tensor(sorted(lacking), device=labels.device))
        return torch.where(taken & ((labels == 0) | (labels == IGNORE)), self.refined_labels, labels)

    def analyse(self, name: str, *place: Any) -> Any:
        """What the method's analysis of this name gives, see ``Inference.analyse``. Needs tags."""
        return self.inference.analyse(name, self.photo, self._given, *place)

    def under(self, inference: Inference) -> Look:
        """The same photo and CAMs under other settings of what is made of CAMs."""
        other = Look(inference, self.photo, self.tags)
        other.__dict__["cams"] = self.cams
        return other

    @property
    def _given(self) -> Tensor:
        if self.tags is None:
            raise DataError("This photo has no tags; 'tagmask predict' makes masks without them.")
        return self.tags


Consumer = Callable[[Item, "Look | DataError"], None]
"""Takes each photo of a pass: its item, and its Look, or why it could not be read."""
Ahead = Literal["logits", "cams"] | None
"""What the network gives for a photo, while a thread does the rest for those before (CRF, PNG, scores)."""


def go_over(
    inference: Inference,
    items: Sequence[Item],
    consumers: Sequence[Consumer],
    title: str,
    console: Console | None,
    notes: Notes | None = None,
    ahead: Ahead = None,
) -> None:
    """Read each item's photo once and hand it to all consumers, so that these share what is computed of it.

    notes: takes what is odd about the photos. With ``ahead`` a GPU segments those of one size that follow each other at
    once.
    """

    def consume(item: Item, look: Look | DataError) -> None:
        for consumer in consumers:
            consumer(item, look)

    for _ in shown(looked_at(inference, items, consume, notes, ahead), len(items), title, console):
        pass


class Part(Protocol):
    """Takes the photos of one block of a ``PhotoPass``, and says what it found."""

    def wants(self, item: Item) -> bool:
        """Whether it takes a photo."""

    def add(self, item: Item, look: Look | DataError) -> None:
        """Take a photo, or why it could not be read."""

    def state(self) -> Any:
        """What it found, of dictionaries, lists, text, numbers and arrays."""


@dataclass
class PhotoPass:
    """A pass over photos that processes share: what ``go_over`` does, block by block (see ``share``).

    begin: gives what takes the photos of a block. take: what it found, in the process that leads. notes: takes what is
    odd about the photos.
    """

    inference: Inference
    items: Sequence[Item]
    begin: Callable[[Sequence[Item]], Part]
    take: Callable[[Any], None]
    title: str
    ahead: Ahead = None
    notes: Notes | None = None
    console: Console | None = None

    def work(self, blocks: Blocks) -> int:
        """Do the blocks that are free, without a break between them."""
        places: dict[str, int] = {}
        parts: dict[int, Part] = {}
        waiting: Counter[int] = Counter()
        found: Notes | None = None if self.notes is None else {}

        def taken() -> Iterator[Item]:
            for number, items in blocks.free():
                parts[number] = self.begin(items)
                wanted = [item for item in items if parts[number].wants(item)]
                waiting[number] = len(wanted)
                places.update((item.id, number) for item in wanted)
                if not wanted:
                    finish(number)
                yield from wanted

        def consume(item: Item, look: Look | DataError) -> None:
            parts[places[item.id]].add(item, look)

        def finish(number: int) -> None:
            names, odd = {str(item.image) for item in blocks.of[number]} if found else set(), {}
            for kind, there in (found or {}).items():
                odd[kind] = [name for name in list(there) if name in names]
                for name in odd[kind]:  # so that few are left to look through
                    there.remove(name)
            blocks.finish(number, [parts.pop(number).state(), odd])

        photos = 0
        done = looked_at(self.inference, taken(), consume, found, self.ahead, lambda item: places[item.id])
        for item in shown(done, len(self.items), self.title, self.console):
            photos += 1
            number = places.pop(item.id)
            waiting[number] -= 1
            if not waiting[number]:
                finish(number)
        return photos

    def merge(self, state: Any) -> None:
        """Take what a block gave."""
        found, odd = state
        self.take(found)
        for kind, names in odd.items():
            if self.notes is not None and names:
                self.notes.setdefault(kind, []).extend(names)


class MaskPass(PhotoPass):
    """A pass that writes label files."""

    def __init__(
        self,
        inference: Inference,
        writer: LabelWriter,
        title: str,
        ahead: Ahead = None,
        notes: Notes | None = None,
        console: Console | None = None,
    ) -> None:
        super().__init__(inference, writer.items, writer.part, writer.take, title, ahead, notes, console)
        self.writer = writer

    def make(self, name: str, about: Mapping[str, Any]) -> None:
        """Make the masks that lack: shared by processes (name, about: as in ``share``), or by workers of Ray."""
        if self.inference.engine.name == "local":
            share(name, about, self)
            return
        from tagmask.label.ray_engine import spread

        spread(self)


def looked_at(
    inference: Inference,
    items: Iterable[Item],
    consume: Consumer,
    notes: Notes | None = None,
    ahead: Ahead = None,
    block: Callable[[Item], int] = lambda item: 0,
) -> Iterator[Item]:
    """Read the items' photos, hand each to ``consume``, and give it back when that is through with it.

    block: of an item; photos are segmented at once only within one, so that masks do not depend on who does which.
    """
    pairs = read_ahead(items, notes)
    if ahead is None:
        for item, photo in pairs:
            consume(item, _look(inference, item, photo))
            yield item
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Item, Future]] = deque()

        def next_one() -> Item:
            item, future = waiting.popleft()
            future.result()
            return item

        try:
            for group in _of_one_size(pairs, inference, block):
                looks = [(item, _look(inference, item, photo)) for item, photo in group]
                # A mask that a person drew needs no network.
                _start([look for i, look in looks if isinstance(look, Look) and i.corrected is None], ahead)
                waiting += [(item, pool.submit(consume, item, look)) for item, look in looks]
                while len(waiting) > len(group):
                    yield next_one()
            while waiting:
                yield next_one()
        finally:
            for _, future in waiting:
                future.cancel()


def shown(items: Iterable[T], count: int, title: str, console: Console | None) -> Iterator[T]:
    """The items, with a bar of how many of ``count`` have come where the console can show one, and there are any."""
    console, rest = console or Console(stderr=True), iter(items)
    for first in rest:
        yield from track(chain([first], rest), title, count, console=console, disable=not console.is_terminal)


def _look(inference: Inference, item: Item, photo: Tensor | DataError) -> Look | DataError:
    tags = None if item.tags is None else tag_vector(item.tags, inference.method.classes)
    return photo if isinstance(photo, DataError) else Look(inference, photo, tags)


def _start(looks: Sequence[Look], what: Literal["logits", "cams"]) -> None:
    """Let the network look at photos of one size."""
    if what == "cams":
        for look in looks:
            if look.tags is not None:
                look.cams  # noqa: B018 (computed, and kept)
    elif looks:
        together = looks[0].inference.logits(*(look.photo for look in looks))
        for look, logits in zip(looks, together, strict=True):
            look.__dict__["logits"] = logits


def _of_one_size(
    pairs: Iterable[tuple[Item, Any]], inference: Inference, block: Callable[[Item], int]
) -> Iterator[list[tuple[Item, Any]]]:
    """Items and photos of a block that follow each other and have one size, as many as are segmented at once."""
    group: list[tuple[Item, Any]] = []
    most, alike = 1, None
    for item, photo in pairs:
        kind = block(item), getattr(photo, "shape", None)
        if group and (len(group) == most or kind != alike):
            yield group
            group = []
        most, alike = 1 if isinstance(photo, DataError) else inference.together(photo), kind
        group.append((item, photo))
    if group:
        yield group
