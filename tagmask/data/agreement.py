"""Whether masks and tags speak of the same classes."""

from __future__ import annotations

from collections.abc import Iterable

from tagmask.types import IGNORE

FEWEST = 2
"""Photos that must disagree before anything is said."""


def disagreement(photos: Iterable[tuple[tuple[int, ...] | None, set[int]]]) -> list[str]:
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
