"""``tagmask review``: what was decided about a run's photos, and which ones to look at next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask review runs/first --suggest 20`")
def review(
    run: common.RunPath,
    suggest: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="name the N photos whose review is worth most: doubtful, and unlike others"
        ),
    ] = 0,
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="write the run's masks, with the drawn ones among them, there")
    ] = None,
    imported: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="FOLDER",
            help="take the masks in it that differ from the run's as drawn; labels are the run's",
        ),
    ] = None,
    json: common.Json = False,
) -> None:
    """Count the decisions in a run's review.jsonl, and suggest photos to review ('tagmask view' shows them)."""
    from tagmask import workflow
    from tagmask.data.review import decisions_of
    from tagmask.errors import plain
    from tagmask.workflow.suggest import describe

    opened = workflow.Run(run)
    taken = None if imported is None else workflow.import_masks(opened, imported)
    decisions = decisions_of(opened.folder.path, opened.learned_review).values()
    counts = {verdict: sum(d.verdict == verdict for d in decisions) for verdict in ("accept", "reject")}
    counts |= {"tags": sum(d.tags is not None for d in decisions), "mask": sum(d.mask is not None for d in decisions)}
    found = workflow.suggest(opened, suggest, None if json else common.screen()) if suggest else []
    copied = None if masks is None else workflow.corrected_masks(opened, masks)
    if json:
        suggested = [{**s._asdict(), "worth": s.worth} for s in found]
        common.print_json({"decisions": counts, "suggested": suggested, "masks": copied, "imported": taken})
        if taken is not None and taken["failed"]:
            raise typer.Exit(1)
        return
    words = {"accept": "accepted", "reject": "rejected", "tags": "with other tags", "mask": "with a drawn mask"}
    said = ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key])
    common.say(f"{len(opened.collection.items)} photos, {len(decisions)} reviewed" + (f": {said}." if said else "."))
    if found:
        common.say(describe(found))
    if copied is not None:
        common.say(
            f"{masks}: {copied['written']} masks, {copied['drawn']} of them drawn. Left out: {copied['rejected']} "
            f"rejected photos, {copied['retagged']} with other tags ('tagmask run --reviewed' makes their masks)."
        )
    if taken is not None:
        common.say(
            f"{imported}: {taken['added']} masks added to the review, {taken['same']} are as the run has them, "
            f"{taken['without_photo']} without a photo of the run."
        )
        for failure in taken["failed"]:
            common.say(plain(f"left out: {failure['why']}"), "red")
        if taken["failed"]:
            raise typer.Exit(1)
