"""What a table's rows need and may lack, asked before anything is trained: pretrained weights, true masks or boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tagmask.config import EncoderConfig
from tagmask.data import Collection
from tagmask.encoders.weights import find_weights, trained_encoder
from tagmask.errors import DataError, WeightsError
from tagmask.reproduce.job import Job, base_score, of_cost
from tagmask.workflow.opened import Run, open_collection
from tagmask.workflow.scorer import photos_of
from tagmask.workflow.timing import encoders_of


def check_needs(jobs: Sequence[Job]) -> None:
    """Raise WeightsError for weights, DataError for splits and truth, that rows would lack when it is their turn."""
    missing = missing_weights(jobs)
    if missing:
        raise WeightsError("\n".join(missing) + "\nOr run the rows that have theirs (--rows).")
    missing = missing_truth(jobs)
    if missing:
        raise DataError("\n".join(missing) + "\nOr leave the columns of these scores out of a copy of the table.")


def missing_truth(jobs: Sequence[Job]) -> list[str]:
    """'Rows a, b (score cam): why' for what is still to be scored and has nothing to compare with. Opens no photo.

    Raises DataError for data that cannot be opened.
    """
    opened: dict[str, Collection] = {}
    rows: dict[str, list[str]] = {}
    scores: dict[str, list[str]] = {}
    for job in jobs:
        data = job.config.data.model_copy(update={"train_masks": None})  # those of a row that may not be done yet
        scored = [(split, base_score(name)) for _, split, name in job.missing() if not of_cost(name)]
        for split, name in dict.fromkeys(scored):
            key = f"{data.model_dump_json()} {job.config.seed if data.seed is None else data.seed}"
            if key not in opened:
                opened[key] = open_collection(job.config.model_copy(update={"data": data}))
            try:
                photos_of(name, opened[key], split)
            except DataError as error:
                rows.setdefault(str(error), []).append(job.row.name)
                scores.setdefault(str(error), []).append(name)
    return [f"{_listed('Row', names)} ({_listed('score', scores[why])}): {why}" for why, names in rows.items()]


def missing_weights(jobs: Sequence[Job]) -> list[str]:
    """'Rows a, b: why' for each network's pretrained weights that are not found, of all that is still to be trained."""
    why: dict[str, str] = {}
    rows: dict[str, list[str]] = {}
    for job in jobs:
        networks = job.networks() if job.trains() else {}
        untrained = [config for path, config in networks.items() if not Run(path).trained]
        for encoder in (encoder for config in untrained for encoder in encoders_of(config)):
            key = encoder.model_dump_json()
            if key not in why:
                why[key] = _why_missing(encoder)
            if why[key]:
                rows.setdefault(why[key], []).append(job.row.name)
    return [_listed("Row", names) + f": {reason}" for reason, names in rows.items()]


def _listed(what: str, names: Iterable[str]) -> str:
    """'Rows a, b', each name once."""
    once = list(dict.fromkeys(names))
    return f"{what}{'s' if len(once) > 1 else ''} {', '.join(once)}"


def _why_missing(encoder: EncoderConfig) -> str:
    try:
        if trained_encoder(encoder) is None:
            find_weights(encoder)
    except WeightsError as error:
        return str(error)
    return ""
