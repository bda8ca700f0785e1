"""Whether a run's classifier learned its tags at all: if it did not, its masks are worth nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagmask.evaluate.scores import percent
from tagmask.registry import METHODS
from tagmask.workflow.opened import Run

FIRST_TENTH = 0.1
"""Share of the way from chance to a perfect ranking that a classifier has to be beyond."""
TELLING = 0.75
"""Photos are too few to tell where one of a hundred rankings by chance is better than this."""
WORTHLESS = "The masks are worth nothing"
ADD = "Add photos without them, with an empty tag cell."


def verdict(run: Run) -> dict[str, Any] | None:
    """What the class scores of a run say about it: ``{"learned", "split", "map", "chance", "text"}``.

    The mean average precision of the class scores is compared with that of the same scores against shuffled tags
    (``chance_precision``). 'learned' is false where it is not above the 99th percentile of these, or not a tenth of
    the way from their mean to 1, and where all training photos have the same tags. One tag may be right nevertheless if
    the method has its classes from the pretrained network: 'learned' is then None. It goes by 'val'. Where val has too
    few photos to tell, it goes by 'train', whose photos were seen in training: these can only show that nothing was
    learned. Where they do not, 'learned' is None. text: what is wrong and what to do; empty where nothing is known to
    be wrong. None for a method without class scores, and before 'val' or 'train' is scored.
    """
    scored = run.folder.metrics().get("classification") or {}
    if not {"val", "train"} & scored.keys():
        return None
    unknown = {"learned": None, "split": None, "map": None, "chance": None, "text": ""}
    tags = {item.tags for item in run.collection.split("train")}
    if len(tags) < 2:
        if METHODS.get(run.config.method.name).reads_classes and all(len(own or ()) == 1 for own in tags):
            text = "All training photos have the same tag, so nothing tells whether the masks show it: look at some."
            return unknown | {"text": f"{text} {ADD}"}
        return unknown | {"learned": False, "text": f"{WORTHLESS}: all training photos have the same tags. {ADD}"}
    for split in ("val", "train"):
        entry = scored.get(split)
        chance = (entry or {}).get("chance")
        if entry is None or not chance or chance["high"] > TELLING:
            continue
        mean = chance["mean"]
        learned = entry["map"] > max(chance["high"], mean + FIRST_TENTH * (1 - mean))
        if split == "val" or not learned:
            text = "" if learned else _text(run, entry)
            return {"learned": learned, "split": split, "map": entry["map"], "chance": mean, "text": text}
    return unknown


def _text(run: Run, entry: Mapping[str, Any]) -> str:
    train = run.config.train
    kind = "held-out" if entry["split"] == "val" else "training"
    found = f"{percent(entry['map'])} % mean average precision on {entry['images']} {kind} photos"
    advice = ["see that the tags belong to their photos (tagmask check)"]
    if run.config.encoder.weights == "none":
        advice.append("start from pretrained weights (encoder.weights=auto)")
    if any("lost" in record for record in run.folder.log()):
        advice.append(f"train at a lower rate (train.lr={train.lr / 10:.2g})")
    else:
        advice.append(f"train longer (train.steps={2 * train.steps})")
    return (
        f"{WORTHLESS}: the classifier has not learned the tags ({found}, where chance has "
        f"{percent(entry['chance']['mean'])} %). What to do: {'; '.join(advice)}."
    )
