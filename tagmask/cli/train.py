"""``tagmask train``: learn from tags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tagmask.cli import common

Resume = Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in the run folder")]


@common.app.command(
    epilog="Example: `tagmask train photos -o runs/first train.steps=500 train.warmup=25 method.warmup=100`"
)
def train(
    words: common.Words = None,
    tags: common.Tags = None,
    masks: common.Masks = None,
    method: common.Method = None,
    encoder: common.Encoder = None,
    weights: common.Weights = None,
    seed: common.Seed = None,
    configs: common.Configs = None,
    out: common.Out = Path("runs/latest"),
    resume: Resume = False,
    labels_of: common.LabelsOf = None,
    json: common.Json = False,
) -> None:
    """Train a method on tagged photos, or a segmenter on the masks of a run (--labels-of).

    --resume goes on with the run folder's own configuration.
    """
    from tagmask import workflow
    from tagmask.config import load_config
    from tagmask.training import RunFolder

    values, overrides = common.settings(words, tags, masks, method, encoder, weights, seed)
    given: list[Any] = [*([workflow.labels_of(labels_of)] if labels_of else []), *(configs or [])]
    folder = RunFolder(out)
    if resume and folder.config_file.is_file():
        config = workflow.resumed(folder, given, values, overrides)
    else:
        config = load_config(*given, values, overrides=overrides)
    done = workflow.train(config, out, resume=resume)
    if json:
        common.print_json(
            {"run": str(out), "steps": done.steps, "seconds": done.seconds, "data_share": done.data_share}
        )
    else:
        share = f"{done.data_share:.0%} of it waiting for images"
        common.say(f"{done.steps} steps in {done.seconds / 60:.1f} min ({share}). Model: {out}/model")
