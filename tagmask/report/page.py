"""One self-contained HTML page about a run: pictures, scores with their stamps, curves, configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tagmask.data.pixels import palette
from tagmask.errors import DataError
from tagmask.evaluate.scores import percent
from tagmask.evaluate.stamp import describe
from tagmask.report.overlay import data_uri, fitted, heat, overlay, resized
from tagmask.report.plots import line, threshold_curve
from tagmask.types import IGNORE

SIDE = 320
"""Longer side of a picture on the page, pixels."""
SHOWN = 6
"""Photos among the best and among the worst; twice as many where there are no scores."""
CAMS_SHOWN = 3
"""Class activation maps of one photo, the strongest first."""
LACKING = "Masks without a class that the photo is tagged with"


@dataclass
class Panel:
    """One photo with what is known about it; whatever is None is left out of the page.

    image: uint8 (H,W,3). tags: names. classes: foreground names; label i is ``classes[i-1]``. cam: float (H,W), or
    (C',H,W) with ``cam_names``, in [0,1], any resolution. refined, prediction, truth: uint8 (H,W), 255 for unsure
    or void. score: the photo's mIoU in [0,1]. missing: tagged classes without a pixel in the photo's mask.
    """

    id: str
    image: np.ndarray
    tags: list[str]
    classes: list[str]
    cam: np.ndarray | None = None
    cam_names: list[str] | None = None
    refined: np.ndarray | None = None
    prediction: np.ndarray | None = None
    truth: np.ndarray | None = None
    score: float | None = None
    missing: Sequence[str] = ()


def write_report(
    run: Path,
    panels: Sequence[Panel],
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    config_yaml: str,
    environment: Mapping[str, Any],
    fingerprint: Mapping[str, Any] | None = None,
    title: str = "tagmask report",
    further: Sequence[Panel] = (),
) -> Path:
    """Write ``run/report.html`` and return its path.

    panels: photos to choose from. metrics: ``{"scores": [dictionaries of tagmask.evaluate.score], "classification":
    {"map": share, "per_class": {name: share}}}``, both optional. log: rows ``{"step", "losses": {name: value},
    "figures": {name: value}, "lr", "images_per_second", …}``; rows without losses are passed over. fingerprint: of the
    data, as ``tagmask check`` saves it. further: photos that are shown if their masks lack a class. Raises DataError
    naming the photo whose panel does not fit.
    """
    scores = list(metrics.get("scores") or [])
    groups = choose(panels)
    groups += lacking_group([*panels, *further], groups)
    shown = [panel for _, members in groups for panel in members]
    pictured = [(name, [_pictures(panel) for panel in members]) for name, members in groups]
    widest = max((len(panel["pictures"]) for _, members in pictured for panel in members), default=0)
    page = _template().render(
        title=title,
        scores=[_headline(score) for score in scores],
        classification=metrics.get("classification"),
        groups=pictured,
        columns=min(max(widest, 4), 7),
        legend=_legend(shown),
        training=_training(log),
        class_rows=_class_rows(scores),
        score_names=[_title(score) for score in scores],
        confusions=[(_title(score), _confusion(score)) for score in scores],
        curves=[(_title(score), _curve(score)) for score in scores if score.get("curve")],
        data=_data(fingerprint) if fingerprint else None,
        config=config_yaml,
        environment=_flat(environment),
    )
    path = Path(run) / "report.html"
    # Written beside and renamed, so that a reader never sees half a page.
    partial = path.with_suffix(".html.part")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def choose(panels: Sequence[Panel], shown: int = SHOWN) -> list[tuple[str, list[Panel]]]:
    """Named groups of panels: best and worst where photos have scores, else the first ones as samples.

    A photo without tags is a trivial success when nothing is found in it, so the best are sought among the others.
    """
    scored = sorted((p for p in panels if p.score is not None), key=lambda p: -(p.score or 0.0))
    if not scored:
        return [("Samples", list(panels[: 2 * shown]))] if panels else []
    best = [panel for panel in scored if panel.tags][: min(shown, (len(scored) + 1) // 2)] or scored[:shown]
    chosen = set(map(id, best))
    worst = [panel for panel in scored if id(panel) not in chosen][-shown:][::-1]
    return [("Best", best), *([("Worst", worst)] if worst else [])]


def lacking_group(panels: Sequence[Panel], groups: Sequence[tuple[str, list[Panel]]]) -> list[tuple[str, list[Panel]]]:
    """A group of the panels whose masks lack a tagged class and that are not in ``groups``; none where all are."""
    there = {panel.id for _, members in groups for panel in members}
    found = [panel for panel in panels if panel.missing and panel.id not in there][:SHOWN]
    return [(LACKING, found)] if found else []


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["percent"] = percent
    return environment.get_template("report.html")


def _title(score: Mapping[str, Any]) -> str:
    """Scores of one name may stand on several splits."""
    return f"{score['name']} on {score['stamp']['split']}"


def _headline(score: Mapping[str, Any]) -> dict[str, Any]:
    return {**score, "title": _title(score), "describe": describe(score["stamp"])}


def _pictures(panel: Panel) -> dict[str, Any]:
    """The panel's pictures as (caption, address), and what stands above them."""
    try:
        size = fitted(panel.image.shape[:2], SIDE)
        image = resized(panel.image, size)
        pictures = [("image", data_uri(image)), *_heats(panel, image)]
        for name in ("refined", "prediction", "truth"):
            labels = getattr(panel, name)
            if labels is not None:
                _check_shape("a label map", np.asarray(labels).shape, panel)
                small = resized(np.asarray(labels), size, labels=True)
                pictures.append((name, data_uri(overlay(image, small))))
    except (DataError, ValueError, TypeError) as error:
        raise DataError(f"{panel.id}: its pictures cannot be drawn for the report ({error}).") from error
    tags = [(tag, colour(panel.classes.index(tag) + 1) if tag in panel.classes else None) for tag in panel.tags]
    return {"id": panel.id, "score": panel.score, "tags": tags, "missing": panel.missing, "pictures": pictures}


def _heats(panel: Panel, image: np.ndarray) -> list[tuple[str, str]]:
    if panel.cam is None:
        return []
    cams = np.asarray(panel.cam, dtype=np.float32)
    names = panel.cam_names
    if cams.ndim == 2:
        cams, names = cams[None], names or [""]
    if names is None or len(names) != len(cams):
        raise DataError(f"{len(cams)} class activation maps need as many names, got {names}")
    order = np.argsort(-cams.reshape(len(cams), -1).max(axis=1, initial=0), kind="stable")[:CAMS_SHOWN]
    _check_shape("a class activation map", cams.shape[1:], panel)
    result = []
    for index in sorted(order):
        small = resized(cams[index], (image.shape[0], image.shape[1]))
        result.append((f"CAM {names[index]}".strip(), data_uri(heat(image, small))))
    return result


def _check_shape(what: str, shape: tuple[int, ...], panel: Panel) -> None:
    """Raise DataError for a map (h,w) of another shape than its photo (H,W); any size will do."""
    (h, w), (H, W) = shape, panel.image.shape[:2]
    # Both sides were rounded to whole pixels, by half a pixel at most.
    if 2 * abs(h * W - w * H) > H + W:
        raise DataError(f"{what} of {h}x{w} is not of the photo's shape {H}x{W}")


def colour(label: int) -> str:
    """Colour of a label as CSS."""
    return "#{:02x}{:02x}{:02x}".format(*palette()[label])


def _legend(panels: Sequence[Panel]) -> list[tuple[str, str | None]]:
    """(name, colour) of every label in the pictures, in order; None stands for the hatching of 255."""
    names: dict[int, str] = {}
    for panel in panels:
        for labels in (panel.refined, panel.prediction, panel.truth):
            for label in np.unique(labels) if labels is not None else ():
                if 0 < label <= len(panel.classes):
                    names[int(label)] = panel.classes[label - 1]
                elif label == IGNORE:
                    names[IGNORE] = "unsure or void"
    return [(name, colour(label) if label != IGNORE else None) for label, name in sorted(names.items())]


def _training(log: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Plots of every loss term, of the method's figures and of the learning rate; what the log says in numbers."""
    rows = [row for row in log if row.get("losses")]
    if not rows:
        return None
    plots = []
    for kind in ("losses", "figures"):
        for name in dict.fromkeys(name for row in rows for name in row.get(kind, {})):
            values = [(row["step"], row.get(kind, {}).get(name)) for row in rows]
            points = [(step, value) for step, value in values if value is not None and np.isfinite(value)]
            if points:
                plots.append(Markup(line(name, *_columns(points), smooth=kind == "losses")))
    rates = [(row["step"], row["lr"]) for row in rows if row.get("lr") is not None]
    if rates:
        plots.append(Markup(line("learning rate", *_columns(rates), smooth=False)))
    speeds = [row["images_per_second"] for row in rows if row.get("images_per_second") is not None]
    return {"plots": plots, "steps": rows[-1]["step"], "speed": float(np.median(speeds)) if speeds else None}


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _class_rows(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a class: its colour and, score by score, IoU, precision, recall and pixels (None where not scored)."""
    names = dict.fromkeys(name for score in scores for name in score["per_class"])
    return [
        {"name": name, "colour": colour(i), "values": [score["per_class"].get(name) for score in scores]}
        for i, name in enumerate(names)
    ]


def _confusion(score: Mapping[str, Any]) -> dict[str, Any]:
    """The share of each true class by predicted class."""
    counts = np.array(score["confusion"], dtype=np.float64)
    return _shares(counts, counts.sum(axis=1, keepdims=True), score["classes"], "truth \\ prediction")


def _shares(counts: np.ndarray, total: np.ndarray, names: Sequence[str], corner: str) -> dict[str, Any]:
    """A table of shares (K,K) of each row's total (K,1) for the page; None where there is nothing to share."""
    shares = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    rows = [(name, [None if np.isnan(x) else float(x) for x in row]) for name, row in zip(names, shares)]
    return {"corner": corner, "names": list(names), "rows": rows}


def _curve(score: Mapping[str, Any]) -> Markup | None:
    curve = score["curve"]
    peak = curve["peak"]
    if peak["miou"] is None:
        return None
    chosen = score["stamp"]["threshold"]
    return Markup(threshold_curve(curve["thresholds"], curve["miou"], (peak["threshold"], peak["miou"]), chosen))


def _data(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of the data's fingerprint: counts, tag histogram, co-occurrence, warnings and problems."""
    tags = dict(fingerprint.get("tags") or {})
    most = max(tags.values(), default=0)
    together = np.array(fingerprint.get("cooccurrence") or [], dtype=np.float64)
    figure = None
    if together.size and most:
        own = np.diagonal(together)[:, None].copy()
        np.fill_diagonal(together, np.nan)
        figure = _shares(together, own, list(tags), "photos with \\ also have")
    counts = {name.replace("_", " "): count for name, count in (fingerprint.get("counts") or {}).items() if count}
    splits = {f"in {name}": split["images"] for name, split in (fingerprint.get("splits") or {}).items()}
    problems = [
        f"{problem['path']}: {problem['what']}"
        for kind in ("unreadable", "bad_masks", "problems")
        for problem in fingerprint.get(kind) or []
    ]
    return {
        "facts": list((counts | splits).items()),
        "tags": [(name, count, count / most if most else 0.0) for name, count in tags.items()],
        "together": figure,
        "notes": [*(fingerprint.get("warnings") or []), *((fingerprint.get("masks") or {}).get("warnings") or [])],
        "problems": problems,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as rows of dotted names and text."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)))
    return rows
