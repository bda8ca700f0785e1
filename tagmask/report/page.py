"""One self-contained HTML page about a run: pictures, scores with their stamps, curves, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tagmask.data.pixels import palette
from tagmask.evaluate.scores import percent
from tagmask.evaluate.stamp import describe, flat
from tagmask.files import write_text
from tagmask.label.overlay import data_uri, fitted, heat, overlay, resized
from tagmask.report.first_screen import first_screen
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

    image: uint8 (H,W,3). classes: foreground names; label i is ``classes[i-1]``. tags: some of them. cam: float
    (C',h,w) in [0,1], any resolution, of the classes ``cam_names``. refined, prediction, truth: uint8 (H,W), 255 for
    unsure or void. score: the photo's mIoU in [0,1]. missing: tagged classes without a pixel in the photo's mask.
    """

    id: str
    image: np.ndarray
    tags: list[str]
    classes: list[str]
    cam: np.ndarray | None = None
    cam_names: Sequence[str] = ()
    refined: np.ndarray | None = None
    prediction: np.ndarray | None = None
    truth: np.ndarray | None = None
    score: float | None = None
    missing: Sequence[str] = ()

    def labels(self) -> dict[str, np.ndarray]:
        """The label maps that are there, by name."""
        maps = {"refined": self.refined, "prediction": self.prediction, "truth": self.truth}
        return {name: labels for name, labels in maps.items() if labels is not None}


def write_report(
    run: Path,
    panels: Sequence[Panel],
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    config_yaml: str,
    environment: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    title: str,
    further: Sequence[Panel] = (),
    doubtful: Sequence[Panel] = (),
    verdict: str = "",
    taught: Sequence[str] = (),
    source: str = "tags",
    lacking: int = 0,
    suspects: int = 0,
) -> Path:
    """Write ``run/report.html`` and return its path.

    panels: photos to choose from. metrics: 'scores', results of ``ScoreStream``, 'classification', as in metrics.json
    but of one split, or None, and 'quality' by split, where it was estimated. log: rows of log.jsonl. fingerprint: of
    the data, as ``tagmask check`` saves it. further: photos that are shown if their masks lack a class. doubtful:
    photos with their masks, the most doubtful first. verdict: the page's first line, where there is one. taught,
    source, lacking, suspects: see ``first_screen``.
    """
    groups = [(name, [(panel, _pictures(panel)) for panel in chosen]) for name, chosen in choose(panels, further)]
    shown = [panel for _, members in groups for panel in members]
    scores = metrics["scores"]
    there = {int(label) for panel, _ in shown for labels in panel.labels().values() for label in np.unique(labels)}
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages.filters |= {"percent": percent, "describe": describe}
    page = pages.get_template("report.html").render(
        title=title,
        verdict=verdict,
        first=first_screen(
            scores, metrics.get("quality", {}), fingerprint, taught, source, lacking, suspects, str(run)
        ),
        scores=scores,
        classification=metrics["classification"],
        quality=metrics.get("quality", {}),
        doubtful=[(panel, _pictures(panel)[-1][1]) for panel in doubtful],
        groups=groups,
        columns=min(max([4, *(len(pictures) for _, pictures in shown)]), 7),
        colours={label: "#{:02x}{:02x}{:02x}".format(*rgb) for label, rgb in enumerate(palette()[:IGNORE])},
        labels=sorted(there - {0}),
        classes=shown[0][0].classes if shown else [],
        training=_training(log),
        curves=[(s, _curve(s)) for s in scores if s["curve"] and s["curve"]["peak"]["miou"] is not None],
        data=fingerprint,
        config=config_yaml,
        environment=flat(environment),
    )
    path = Path(run) / "report.html"
    write_text(path, page)
    return path


def choose(panels: Sequence[Panel], further: Sequence[Panel] = ()) -> list[tuple[str, list[Panel]]]:
    """Named groups: the best and worst where photos have scores, else samples; then others whose masks lack a class."""
    scored = sorted((p for p in panels if p.score is not None), key=lambda p: -(p.score or 0.0))
    best = min(SHOWN, (len(scored) + 1) // 2)
    groups = [("Best", scored[:best]), ("Worst", scored[best:][-SHOWN:][::-1])]
    if not scored:
        groups = [("Samples", list(panels[: 2 * SHOWN]))]
    there = {panel.id for _, members in groups for panel in members}
    groups.append((LACKING, [p for p in (*panels, *further) if p.missing and p.id not in there][:SHOWN]))
    return [(name, members) for name, members in groups if members]


def _pictures(panel: Panel) -> list[tuple[str, str]]:
    """The panel's pictures, each its caption and address."""
    size = fitted(panel.image.shape[:2], SIDE)
    image = resized(panel.image, size)
    pictures = [("image", data_uri(image))]
    if panel.cam is not None:
        strongest = np.argsort(-panel.cam.max(axis=(1, 2)), kind="stable")[:CAMS_SHOWN]
        for i in sorted(strongest):
            pictures.append((f"CAM {panel.cam_names[i]}", data_uri(heat(image, resized(panel.cam[i], size)))))
    for name, labels in panel.labels().items():
        pictures.append((name, data_uri(overlay(image, resized(labels, size, labels=True)))))
    return pictures


def _training(log: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Plots of every loss term, of the method's figures and of the learning rate; what the log says in numbers."""
    rows = [row for row in log if "losses" in row]
    if not rows:
        return None
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for kind in ("losses", "figures", "lr"):
        for row in rows:
            entries = {"learning rate": row["lr"]} if kind == "lr" else row.get(kind, {})
            for name, value in entries.items():
                if value is not None and np.isfinite(value):
                    points.setdefault((kind, name), []).append((row["step"], value))
    plots = []
    for (kind, name), found in points.items():
        steps, values = zip(*found)
        plots.append(Markup(line(name, steps, values, smooth=kind == "losses")))
    speed = float(np.median([row["images_per_second"] for row in rows]))
    return {"plots": plots, "steps": rows[-1]["step"], "speed": speed}


def _curve(score: Mapping[str, Any]) -> Markup:
    curve, peak = score["curve"], score["curve"]["peak"]
    best = peak["threshold"], peak["miou"]
    return Markup(threshold_curve(curve["thresholds"], curve["miou"], best, score["stamp"]["threshold"]))
