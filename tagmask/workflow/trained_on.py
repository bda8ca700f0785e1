"""The masks that a run learned from: kept beside it when it is trained, told in the stamp on its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagmask.config import LabelConfig
from tagmask.evaluate import THRESHOLD_SOURCES
from tagmask.training import RunFolder, read_json, write_json

NAME = "train_masks.json"


def keep_masks(folder: RunFolder, masks: Path) -> None:
    """Write down how the label files in ``masks`` were made, since they may be gone or made anew when scores are.

    That is their classes.json without the classes, empty where tagmask did not make them, and the method and encoder of
    the run that they belong to, where that is known.
    """
    about = masks / "classes.json"
    kept: dict[str, Any] = {"folder": masks.name, "note": read_json(about) if about.is_file() else {}}
    kept["note"].pop("classes", None)
    source = RunFolder(masks.parent)
    model = source.model / "classes.json"
    if "model" in kept["note"] and model.is_file() and read_json(model)["digest"] == kept["note"]["model"]:
        config = source.config()
        kept |= {"method": config.method.name, "encoder": config.encoder.name}
    write_json(folder.path / NAME, kept)


def kept_masks(folder: RunFolder) -> dict[str, Any] | None:
    """What ``keep_masks`` wrote; None for a run that an earlier version trained, or one without such masks."""
    path = folder.path / NAME
    return read_json(path) if path.is_file() else None


def how_made(kept: Mapping[str, Any]) -> str:
    """How the masks were made, in words. No paths and digests: seeds of one row and other machines have others."""
    note = kept["note"]
    if "label" not in note:
        return f"not by tagmask, '{kept['folder']}'"
    label, stage, cam = made_with(note), note.get("stage", {}), note["source"] == "cam"
    parts = [f"{kept['method']} on {kept['encoder']}"] if "method" in kept else []
    parts += [note["use"]] if "use" in note else []
    parts.append(("CAMs" if cam else "segmenter") + ("" if note["tags_used"] else " without tags"))
    scales, flip = (label.cam_scales, label.cam_flip) if cam else (label.scales, label.flip)
    parts.append(f"scales {', '.join(f'{s:g}' for s in scales)}" + (" + flip" if flip else ""))
    walked = of_stage(stage)
    if cam and walked is None:
        parts.append(f"threshold {_cut_at(label)}")
    parts.append(walked or f"refined by {label.refine if cam else label.refine_masks + completed(label)}")
    crf = stage["crf"] if stage else "none" if cam else label.crf
    if crf != "none":
        parts.append(f"CRF {crf}")
    unsure = None if stage else unsure_by(label, cam)
    if unsure is not None:
        parts.append(f"255 by {unsure}")
    return ", ".join(parts)


def made_with(note: Mapping[str, Any]) -> LabelConfig:
    """The settings that label files were made with; earlier versions did not complete masks, and did not say so."""
    return LabelConfig.model_validate({"complete": False} | note["label"])


def completed(label: LabelConfig) -> str:
    """What a segmenter's masks are said to be, behind their refinement, where CAMs stand in for it."""
    if not label.complete:
        return ""
    scales = ", ".join(f"{scale:g}" for scale in label.cam_scales) + (" + flip" if label.cam_flip else "")
    return f", tags without a pixel from CAMs (threshold {_cut_at(label)}, scales {scales}, refined by {label.refine})"


def _cut_at(label: LabelConfig) -> str:
    source = THRESHOLD_SOURCES[label.threshold_from]
    return f"{label.threshold:g}" + ("" if source == "fixed" else f" {source}")


def unsure_by(label: LabelConfig, cam: bool) -> tuple[float, float] | float | None:
    """What makes pixels 255 in masks from CAMs, or else from a segmenter; None: nothing does."""
    if cam:
        return None if label.high is None or label.low is None else (label.high, label.low)
    return label.unsure or None


def of_stage(stage: Mapping[str, Any]) -> str | None:
    """What a stage did to CAMs instead of refining them; None for masks that no stage made, or without a walk."""
    if stage.get("name") == "cams":
        keys = ("high", "low") if stage["rule"] == "constant" else ("power_high", "power_low")
        return f"confident labels ({', '.join(f'{key} {stage[key]:g}' for key in keys)})"
    if "affinity" in stage:
        settings = ", ".join(f"{key} {value:g}" for key, value in stage["walk"].items())
        return f"random walk ({stage['affinity']}, {settings})"
    return None
