"""What a report says first: what was learned, how good the masks are, what to look at next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tagmask.evaluate.scores import percent

WORST = 3
"""Classes that are named as the worst."""
NAMED = 12
"""Classes and photos that are named before 'and more'."""


def first_screen(
    scores: Sequence[Mapping[str, Any]],
    quality: Mapping[str, Any],
    data: Mapping[str, Any],
    taught: Sequence[str],
    source: str,
    lacking: int,
    suspects: int,
    place: str,
) -> dict[str, Any]:
    """Sentences and figures: 'learned', 'good' (of new photos and of the delivered masks), 'next'.

    scores, quality: as in metrics.json. data: the fingerprint. taught: what was trained, in words, one network each.
    source: what it learned from, such as 'tags' or 'true masks'. lacking: masks that lack a tagged class. suspects:
    photos whose tags are probably wrong. place: the run's folder.
    """
    counts, train = data["counts"], data["splits"].get("train", {})
    photos = train.get("labelled", counts["labelled"])
    classes = data["classes"]
    learned = [f"{_count(classes, 'class', 'classes')}, from the {source} of {photos} photos: {_some(classes)}."]
    return {
        "learned": [*learned, *taught],
        "good": figures(scores, quality),
        "next": what_next(scores, quality, lacking, suspects),
        "view": f"tagmask view {place}",
    }


def figures(scores: Sequence[Mapping[str, Any]], quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known of new photos and of the delivered masks: {title, value, unit, note, stamp}, as far as it is.

    value: a share, in [0,1]. stamp: None of what no true masks tell.
    """
    return [figure for figure in (_new_photos(scores, quality), _delivered(scores, quality)) if figure]


def _new_photos(scores: Sequence[Mapping[str, Any]], quality: Mapping[str, Any]) -> dict[str, Any] | None:
    """How well new photos are segmented: by true masks, else by the tags of photos that trained nothing."""
    for split in ("test", "val"):
        found = [
            s for s in scores if s["name"] == "segmenter" and s["stamp"]["split"] == split and s["miou"] is not None
        ]
        if found:
            return _scored("New photos, without tags", found[-1])
    held = next((q for name, q in quality.items() if name != "train" and q["recall"] is not None), None)
    if held is None:
        return None
    return {
        "title": "New photos, without tags",
        "value": held["recall"],
        "unit": "% of the tagged classes found",
        "note": f"on {held['images']} photos of {held['split']}, which trained nothing; {percent(held['precision'])} % "
        "of what is found is tagged. There are no true masks.",
        "stamp": None,
    }


def _delivered(scores: Sequence[Mapping[str, Any]], quality: Mapping[str, Any]) -> dict[str, Any] | None:
    """How good the masks of the tagged photos are: by true masks, else the estimate."""
    for split in ("train", "val"):
        found = [s for s in scores if s["name"] == "masks" and s["stamp"]["split"] == split and s["miou"] is not None]
        if found:
            given = "tags of the true masks" if found[-1]["stamp"].get("tags_from") == "masks" else "tags"
            return _scored(f"Delivered masks, from {given}", found[-1])
    guess = quality.get("train") or next(iter(quality.values()), None)
    if guess is None or guess["estimate"] is None:
        return None
    return {
        "title": "Delivered masks, from tags",
        "value": guess["estimate"],
        "unit": "% estimated",
        "note": f"on {guess['images']} photos of {guess['split']}. There are no true masks: it says how far other "
        "views agree. It is no IoU, and says nothing about outlines: look at some masks.",
        "stamp": None,
    }


def _scored(title: str, score: Mapping[str, Any]) -> dict[str, Any]:
    interval, stamp = score["interval"], score["stamp"]
    between = f"; 95 % interval {percent(interval['low'])} to {percent(interval['high'])}" if interval else ""
    note = f"against the true masks of {stamp['images']} photos of {stamp['split']}{between}."
    return {"title": title, "value": score["miou"], "unit": "% mIoU", "note": note, "stamp": stamp}


def what_next(
    scores: Sequence[Mapping[str, Any]], quality: Mapping[str, Any], lacking: int, suspects: int
) -> list[dict[str, str]]:
    """Sentences, each with the part of the page that shows it."""
    found = []
    last = next((s for s in reversed(scores) if s["name"] in ("segmenter", "masks")), None)
    if last is not None:
        known = {n: v["iou"] for n, v in last["per_class"].items() if v["iou"] is not None and n != "background"}
        worst = sorted(known, key=known.__getitem__)[:WORST]
        named = ", ".join(f"{name} {percent(known[name])} %" for name in worst)
        found.append({"text": f"The weakest classes on {last['stamp']['split']}: {named}.", "to": "classes"})
    elif quality:
        rated = next(iter(quality.values()))["per_class"]
        known = {name: value["agreement"] for name, value in rated.items() if value["agreement"] is not None}
        named = ", ".join(sorted(known, key=known.__getitem__)[:WORST])
        found.append({"text": f"Views of their photos agree least on {named}.", "to": "quality"})
    if quality:
        found.append({"text": "The most doubtful masks, with quality.csv for all of them.", "to": "quality"})
    if lacking:
        masks = _count(lacking, "mask lacks", "masks lack")
        found.append({"text": f"{masks} a class that the photo is tagged with (masks/missing.csv).", "to": "photos"})
    if suspects:
        found.append(
            {"text": f"{_count(suspects, 'photo', 'photos')} may have wrong tags (suspects.csv).", "to": "data"}
        )
    return found


def _count(what: int | Sequence[str], one: str, many: str) -> str:
    number = what if isinstance(what, int) else len(what)
    return f"{number} {one if number == 1 else many}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", and more" if len(names) > NAMED else "")
