"""A staged configuration from its classifier to its scores in one call, for tables and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tagmask.config import RunConfig
from tagmask.errors import ConfigError, nearest
from tagmask.registry import METHODS
from tagmask.training import RunFolder
from tagmask.workflow.clock import Clock
from tagmask.workflow.runs import prepare
from tagmask.workflow.score_run import SPECIAL, evaluate
from tagmask.workflow.scoring import SCORES
from tagmask.workflow.stages import build_networks, check_stages, run_stages, save_stages
from tagmask.workflow.train_run import resumed, train

MADE_BY = {"seeds": "cams", "masks": "masks"}
"""Scores of label files, and the stages that write them, for training photos."""
OF_SEGMENTER = ("segmenter", "segmenter+tags")


def staged_run(
    config: RunConfig,
    out: str | Path,
    wanted: Sequence[tuple[str, str]] = (("cam", "train"), ("masks", "train"), ("segmenter", "test")),
    console: Console | None = None,
) -> dict[str, Any]:
    """Train the classifier of a configuration with stages in ``out``, run its stages, and score them.

    What is there is kept, so that a killed run goes on when called again; what is finished is scored again.

    wanted: pairs of a score, by its name in ``evaluate``, and a split. 'seeds' and 'masks' are of the label files of
    stages cams and masks (split 'train'), 'segmenter' and 'segmenter+tags' of stage segmenter, where there is one, all
    others of the classifier. 'val' is scored before other splits, which are then scored at its best CAM threshold, too.
    Returns scores (as ``evaluate`` does), stages (by name, what was written), minutes (by stage, of this call).
    Raises ConfigError for a configuration without stages, for scores that it cannot have, and where ``out`` holds
    a run of other settings.
    """
    folder = RunFolder(out)
    _check(config, folder, wanted)
    if folder.config_file.is_file():
        config = resumed(folder, [], config.model_dump(mode="json"), [])
    clock = Clock()
    with clock("check"):
        prepared = prepare(config, folder, resume=True)
        build_networks(config, folder, len(prepared[0].classes))
    save_stages(folder, config)
    with clock("train"):
        alone = config.model_copy(update={"stages": None})
        train(alone, folder.path, resume=True, prepared=prepared, console=console)
    stages = run_stages(config, folder.path, prepared, console, clock)
    scores: list[dict[str, Any]] = []
    with clock("evaluate"):
        for split in sorted({split for _, split in wanted}, key=lambda name: (name != "val", name)):
            names = [name for name, where in wanted if where == split]
            for part, own in runs_of(names, "segmenter" in stages):
                scores += evaluate(folder.path / part, split, own, console=console)
    return {"scores": scores, "stages": stages, "minutes": clock.minutes}


def runs_of(names: Sequence[str], staged: bool) -> list[tuple[str, list[str]]]:
    """Run folders within a run's own, with those of the scores ``names`` that their networks give.

    staged: whether there is a stage 'segmenter', which gives the segmenter's scores.
    """
    stage = [name for name in names if staged and name in OF_SEGMENTER]
    own = [name for name in names if name not in stage]
    return [(part, given) for part, given in ((".", own), ("segmenter", stage)) if given]


def _check(config: RunConfig, folder: RunFolder, wanted: Sequence[tuple[str, str]]) -> None:
    """Raise ConfigError for what would fail only after hours."""
    if config.stages is None:
        raise ConfigError("There are no stages; set stages=[classifier, cams, affinity, masks, segmenter].")
    check_stages(config, folder)
    stages, kind = config.stages.named(), METHODS.get(config.method.name)
    for name, split in wanted:
        if name not in (*SCORES, *SPECIAL):
            raise ConfigError(f"'{name}' is not a score.{nearest(name, (*SCORES, *SPECIAL))}")
        if name in MADE_BY and (MADE_BY[name] not in stages or split != "train"):
            raise ConfigError(f"Score '{name}' on '{split}': it is of stage '{MADE_BY[name]}', for split 'train' only.")
        if name in OF_SEGMENTER and "segmenter" not in stages and not kind.has_segmenter:
            raise ConfigError(f"Score '{name}': there is no stage 'segmenter', and '{config.method.name}' has none.")
