"""Notes on label files and stamps on scores, derived from the settings that were in force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tagmask.config import RunConfig
from tagmask.data import Collection, Item
from tagmask.data.collection import hash_ids
from tagmask.evaluate.stamp import FIXED
from tagmask.files import read_record, write_json
from tagmask.label import Inference
from tagmask.strict import settings as settings_of
from tagmask.training import RunFolder
from tagmask.workflow.opened import Run

MASKS_NOTE = "train_masks.json"
"""In a run folder: how the masks were made that the run learned from."""
GUIDE = "guides.saliency"
"""A setting that makes masks of more than tags."""
IN_EVERY_SCORE = frozenset({"rims", "without", "only"})
"""Parts of every score of label maps, by the names of ``EvaluateConfig``."""


def in_force(config: RunConfig, outputs: Iterable[str]) -> dict[str, Any]:
    """The settings, by dotted key, that decide these outputs of a trained run. Where files lie is left out."""
    wanted = frozenset(outputs)
    found = settings_of(config, lambda role: role.decides(wanted))
    guide = found.pop(GUIDE, None)
    return found | ({GUIDE: Path(guide).stem} if guide else {})


def settled(run: Run) -> RunConfig:
    """The run's configuration with the background score that its CAMs are cut at, wherever it came from."""
    return run.config.model_copy(update={"label": run.inference.config})


def mask_note(run: Run, with_tags: bool) -> dict[str, Any]:
    """How ``label`` (with tags) or ``predict`` makes masks of a run: kept beside them as classes.json."""
    inference = run.inference
    source = inference.source if with_tags else "segmenter"
    return {
        "tags": with_tags,
        "source": source,
        "settings": in_force(settled(run), _outputs_of_masks(inference, source, with_tags)),
        "model": run.model_note["digest"],
    }


def _outputs_of_masks(inference: Inference, source: str, with_tags: bool) -> set[str]:
    of_cams = {"cams", "background", "refined"}
    if source == "cam":
        return of_cams | {"masks", "soft"}
    made = {"segmentation", "crf", "soft"}
    if with_tags:
        made |= {"masks", "guided"} | (of_cams if inference.completes else set())
    return made


def keep_masks_note(folder: RunFolder, masks: Path) -> None:
    """Write down how the label files in ``masks`` were made, since they may be gone when the run is scored.

    That is their classes.json, with the method and encoder of the run that they lie in; the folder's name where tagmask
    did not make them.
    """
    about = masks / "classes.json"
    note = read_record(about) if about.is_file() else {}
    if "settings" in note:
        kept = {key: note[key] for key in ("tags", "source", "settings")}
        if "stage" in note:  # its network is each run's own
            kept["stage"] = {key: value for key, value in note["stage"].items() if key != "model"}
        source = RunFolder(masks.parent)
        if source.config_file.is_file():
            config = source.config()
            kept |= {"method": config.method.name, "encoder": config.encoder.name}
        if GUIDE in note["settings"] or learned_guided(source):
            kept["guided"] = True
        if (taught := _taught(source)) not in (None, "tags"):
            kept["supervision"] = taught
    else:
        kept = {"folder": masks.name}
    write_json(folder.path / MASKS_NOTE, kept)


def _taught(folder: RunFolder) -> str | None:
    """What a run learned from in the first place, through masks of masks; None where nobody knows."""
    note, about = folder.path / MASKS_NOTE, folder.model / "classes.json"
    found = read_record(about)["supervision"].partition(" + ")[0] if about.is_file() else None
    if found == "masks":
        return read_record(note).get("supervision") if note.is_file() else None
    return found


def learned_guided(folder: RunFolder) -> bool:
    """Whether a run learned from masks that saliency had a part in, at first or second hand."""
    note = folder.path / MASKS_NOTE
    return note.is_file() and bool(read_record(note).get("guided"))


def make_stamp(
    run: Run,
    split: str,
    items: Sequence[Item],
    truth: str,
    settings: dict[str, Any],
    tags: bool,
    threshold: float | None = None,
    threshold_from: str = FIXED,
    left_out: int = 0,
) -> dict[str, Any]:
    """The stamp on a score, see ``tagmask.evaluate.stamp``.

    items: the scored photos. truth: as ``truth_of`` has it. settings: those that decide the score, as ``in_force`` has
    them.
    """
    return {
        "split": split,
        "ids": hash_ids(item.id for item in items),
        "images": len(items),
        "left_out": left_out,
        "truth": truth,
        "tags": tags,
        **({"tags_from": "masks"} if tags and run.collection.tags_of_masks else {}),
        "threshold": threshold,
        "threshold_from": threshold_from if threshold is not None else None,
        "settings": settings,
        "run": _trained(run),
        "version": version("tagmask"),
    }


def _trained(run: Run) -> dict[str, Any]:
    """What was trained, and from what."""
    config, note = run.config, run.folder.path / MASKS_NOTE
    masks = read_record(note) if note.is_file() else None
    learned = settings_of(config, lambda role: role.learned and not role.used)
    return {
        "method": config.method.name,
        "encoder": config.encoder.name,
        "weights": run.model_note["weights_origin"],
        "digest": run.model_note["digest"],
        "supervision": supervision_of(run),
        "masks": masks,
        "seed": config.seed,
        # What the data is, the photos' ids and the truth say; where data and weights lie is nobody else's.
        "settings": {
            key: value
            for key, value in learned.items()
            if not key.startswith(("data.", "seed")) and "encoder.weights" not in key
        },
    }


def supervision_of(run: Run) -> str:
    """As the model's card has it; of masks also what those learned from that made them, and saliency."""
    base, *more = run.model_note["supervision"].split(" + ")
    guided, taught = learned_guided(run.folder), _taught(run.folder)
    if base == "masks" and taught is None and run.config.data.tags_from == "masks":
        taught = "tags of true masks"
    if base == "masks" and (taught or guided):
        base = f"masks of {taught or 'tags'}"
    return " + ".join([base, *(["saliency"] if guided else []), *more])


def truth_of(collection: Collection, items: Iterable[Item], shown: int = 3) -> str:
    """Where the true masks of items lie: source and folder, with counts where there are several.

    Of more folders than ``shown`` those with most masks are named.
    """
    folders = Counter(item.mask.parent.name for item in items if item.mask is not None).most_common()
    if len(folders) <= 1:
        return f"{collection.source}:{folders[0][0] if folders else ''}"
    parts = [f"{name} ({count})" for name, count in folders[:shown]]
    rest = folders[shown:]
    parts += [f"{len(rest)} other folders ({sum(count for _, count in rest)})"] if rest else []
    return f"{collection.source}:{', '.join(parts)}"
