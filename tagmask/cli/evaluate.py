"""``tagmask evaluate``: how good is a run, against true masks."""

from __future__ import annotations

from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask evaluate runs/first --split test`")
def evaluate(
    run: common.RunPath,
    overrides: common.Overrides = None,
    split: Annotated[str | None, typer.Option(help="train, val, test or all; default: test, else val")] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            help="cam, refined, cam+crf (with label.crf), seeds, masks, segmenter+tags (all use the tags), segmenter, "
            "localization (boxes of CAMs against true boxes), spread (CAMs of each scale alone), or quality (masks "
            "against other views of their photos, with no need of true masks); repeatable"
        ),
    ] = None,
    with_tags: Annotated[
        bool, typer.Option("--with-tags", help="the segmenter limited to each photo's tags: --what segmenter+tags")
    ] = False,
    json: common.Json = False,
) -> None:
    """Score CAMs, masks and the segmenter on photos with true masks; says with each whether tags were used."""
    from tagmask import workflow
    from tagmask.evaluate import print_classes, print_scores
    from tagmask.training import RunFolder
    from tagmask.workflow.evaluate import print_classification
    from tagmask.workflow.localize import print_localization
    from tagmask.workflow.quality import print_quality
    from tagmask.workflow.scorer import LOCALIZATION, QUALITY, SPREAD
    from tagmask.workflow.spread import print_spread

    wanted = [*(what or ()), *(["segmenter+tags"] if with_tags else [])]
    scores = workflow.evaluate(run, split, wanted, overrides or ())
    if json:
        common.print_json(scores)
        return
    console = common.screen()
    special = {LOCALIZATION: print_localization, SPREAD: print_spread, QUALITY: print_quality}
    for score in scores:
        special.get(score["name"], print_classes)(score, console)
    of_maps = [score for score in scores if score["name"] not in special]
    print_scores(of_maps, console)
    if not scores:
        common.say("no true masks: only the classifier can be scored")
    if of_maps or not scores:
        print_classification(RunFolder(run).metrics().get("classification"), console)
