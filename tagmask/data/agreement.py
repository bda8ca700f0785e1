"""Whether masks, tags and the list of classes speak of the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from tagmask.types import IGNORE

FEWEST = 2
"""Photos that must disagree before anything is said."""


def disagreement(photos: Iterable[tuple[tuple[int, ...] | None, Set[int]]]) -> list[str]:
    """A warning where the masks of half of the photos, or more, do not fit their tags.

    photos: tags (None where nobody looked) and the values in the mask, of each photo with a mask. A mask does not fit
    when it shows a class that is no tag, or none at all although there are tags.
    """
    looked, wrong = 0, 0
    for tags, values in photos:
        shown = {value - 1 for value in values} - {-1, IGNORE - 1}
        if tags is None or not values - {IGNORE} or not (tags or shown):
            continue
        looked += 1
        wrong += not shown <= set(tags) or not shown
    if wrong < FEWEST or 2 * wrong < looked:
        return []
    return [
        f"Masks and tags disagree on {wrong} of {looked} photos: the masks show other classes than the tags name. Is "
        "the order of the classes that of the masks?"
    ]


def mask_warnings(histogram: Mapping[int, int], classes: int) -> list[str]:
    """What is suspicious about the values of all masks together. histogram: pixels by value."""
    labels = sorted(value for value, count in histogram.items() if count and value != IGNORE)
    ignored = histogram.get(IGNORE, 0) > 0
    if not labels:
        return ["Masks hold only 255, which means 'ignore'."] if ignored else []
    if labels == [0] and ignored:
        return ["Masks hold only 0 and 255 ('ignore'): they look like binary 0/255 masks. Save the object as 1."]
    if labels[0] == 1 and labels[-1] == classes + 1:
        return [f"Mask values go from 1 to {classes + 1}: off by one. Background should be 0."]
    if labels[-1] > classes:
        hint = "Off by one?" if labels[-1] == classes + 1 else "Another class list?"
        return [f"Mask value {labels[-1]} is above the number of classes, {classes}. {hint}"]
    if labels[0] == 1:
        return ["No mask pixel is 0 (background). If the background is 1, the values are off by one."]
    return []
