"""The card beside a run's model, written again from what its folder holds by now."""

from __future__ import annotations

from tagmask.evaluate.scores import percent
from tagmask.evaluate.stamp import describe
from tagmask.files import read_record
from tagmask.report.first_screen import figures
from tagmask.training import RunFolder
from tagmask.training.card import without_names
from tagmask.training.card import write_card as write
from tagmask.workflow.opened import Run
from tagmask.workflow.stamp import GUIDE, MASKS_NOTE, supervision_of


def write_card(run: Run) -> None:
    """Write the card of the run's model, and of that of its stage 'segmenter', with data and scores, where trained.

    Of the data it holds counts and digests, of the scores those of this model: no file or folder of the user's.
    """
    above = RunFolder(run.folder.path.parent)
    staged = above.config_file.is_file() and above.last.path == run.folder.path
    first = Run(above.path) if staged else run
    last = first.last
    metrics, scores = first.folder.metrics(), first.folder.scores()
    for part in {first.folder.path: first, last.folder.path: last}.values():
        if not part.folder.trained:
            continue
        about = part.model_note
        own = [score for score in scores if score["stamp"]["run"]["digest"] == about["digest"]]
        lines = []
        for figure in figures(own, metrics.get("quality", {}) if part is last else {}):
            lines.append(f"{figure['title']}: {percent(figure['value'])} {figure['unit']}, {figure['note']}")
            if stamp := figure["stamp"]:
                truth = stamp["truth"].partition(":")[0]  # without its folder
                settings = stamp["settings"] | ({GUIDE: "a network"} if stamp["settings"].get(GUIDE) else {})
                trained = stamp["run"] | {"weights": without_names(stamp["run"]["weights"])}
                told = {**stamp, "truth": truth, "settings": settings, "run": trained}
                lines.append(f"Protocol of that: {describe(told)}")
        write(part.folder.model, part.config, about, _supervision(part, first), _data(part), lines)


def _supervision(part: Run, first: Run) -> str:
    """What a model learned from. Of a stage's masks the run's own model is known, which learned from tags."""
    found = supervision_of(part)
    if part is not first and found.split(" + ")[0] == "masks" and first.model_note["supervision"].startswith("tags"):
        return found.replace("masks", "masks of tags", 1)
    return found


def _data(run: Run) -> list[str]:
    """Counts and digests of the data, and what made the masks that the run learned from."""
    counts, found = run.fingerprint["counts"], run.fingerprint
    note = run.folder.path / MASKS_NOTE
    masks = read_record(note) if note.is_file() else {}
    tagged = "tags read from their true masks" if found["tags_of_masks"] else "tags"
    made = [f"The masks were made by {masks['method']} on {masks['encoder']}."] if "method" in masks else []
    return [
        *made,
        f"{counts['images']} photos, {counts['labelled']} of them with {tagged} and {counts['masks']} with true masks, "
        f"{len(found['classes'])} classes (digest {found['digest'][:12]})",
        *(f"{name}: {split['images']} photos (digest {split['hash']})" for name, split in found["splits"].items()),
    ]
