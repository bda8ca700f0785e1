"""The stamp on a score says how it was made. It is a dictionary; two scores are compared by their difference.

Keys: split, ids (digest of the scored photos' ids), images (their number), left_out (photos with a true mask and
without the tags that the score needs), truth (source and folder of the true masks or boxes), tags (whether tags limited
the classes), tags_from ('masks', there only where these tags are the classes in the true masks), threshold (background
score of CAMs, or None) and threshold_from, settings (by dotted key, those that decide this score of a trained run), run
(what was trained: method, encoder, weights, digest, supervision, masks, seed, settings), version (of tagmask). Of what
was measured, images a second and memory, also measured (device, precision, of what), and no truth.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Stamp = Mapping[str, Any]
FIXED, BY_TRAINING, BY_VAL, BY_SPLIT = "fixed", "training", "val", "this split"
"""Where a background score comes from: it was set; training found it; it is the best on val, or on the split itself."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key; of an empty one nothing is left."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def difference(one: Stamp, other: Stamp, but: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """(one's value, the other's) by dotted key, for each key in which they differ; None stands for a missing key.

    but: top-level keys that are not compared.
    """
    mine, theirs = ({k: v for k, v in flat(s).items() if k.partition(".")[0] not in but} for s in (one, other))
    return {k: (mine.get(k), theirs.get(k)) for k in mine | theirs if mine.get(k) != theirs.get(k)}


def describe(stamp: Stamp) -> str:
    """The whole stamp but the trained settings, on one line."""
    run = stamp["run"]
    parts = [f"{stamp['split']} ({stamp['images']} photos, {stamp['ids'][:4]})", _tags(stamp)]
    parts += [f"{stamp['left_out']} more without tags left out"] if stamp["left_out"] else []
    parts += [_threshold(stamp)] if stamp["threshold"] is not None else []
    parts += [f"{key}={value}" for key, value in stamp["settings"].items()]
    parts += ["measured on {device} in {precision}: {of}".format(**stamp["measured"])] if "measured" in stamp else []
    parts += [f"truth {stamp['truth']}"] if stamp["truth"] else []
    parts += [f"{run['method']} on {run['encoder']} from {run['supervision']}"]
    parts += [f"weights {run['weights']}", f"seed {run['seed']}", f"tagmask {stamp['version']}"]
    return " · ".join(parts)


def headline(name: str, stamp: Stamp) -> str:
    """What was scored, in a few words: 'cam on train, tags given, threshold 0.3 (fixed)'."""
    parts = [f"{name} on {stamp['split']}", _tags(stamp)]
    return ", ".join(parts + ([_threshold(stamp)] if stamp["threshold"] is not None else []))


def _tags(stamp: Stamp) -> str:
    given = "tags of true masks" if stamp.get("tags_from") == "masks" else "tags"
    given += " and saliency" if stamp["settings"].get("guides.saliency") else ""
    return f"{given} given" if stamp["tags"] else "no tags"


def _threshold(stamp: Stamp) -> str:
    return f"threshold {stamp['threshold']:g} ({stamp['threshold_from']})"
