"""``tagmask predict``: masks for new photos, without tags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common
from tagmask.cli.label import report_masks


@common.app.command(epilog="Example: `tagmask predict runs/first holiday/ -o masks/`")
def predict(
    run: common.RunPath,
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO...", help="files, folders or quoted globs")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the masks")] = Path("predictions"),
    setting: Annotated[list[str] | None, typer.Option("--set", "-s", help="override as in label.tile=1024")] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="file of photo names, one a line: only these of the folders named")
    ] = None,
    overlay: Annotated[bool, typer.Option(help="also write <name>_overlay.jpg to look at")] = False,
    overwrite: Annotated[bool, typer.Option(help="make masks again that are there already")] = False,
    json: common.Json = False,
) -> None:
    """Segment photos that have no tags. Large photos are cut into overlapping tiles."""
    from tagmask import workflow
    from tagmask.data.find import read_lines
    from tagmask.errors import DataError
    from tagmask.workflow.predict import photo_items

    items = photo_items(photos)
    if listed is not None:
        names = dict.fromkeys(line for _, line in read_lines(listed))
        by_name = {name: item for item in items for name in (item.image.name, item.image.stem, item.id)}
        gone = [name for name in names if name not in by_name]
        if gone:
            raise DataError(f"{listed}: {len(gone)} photos are not in {', '.join(photos)} ('{gone[0]}' is the first).")
        items = [by_name[name] for name in names]
    done = workflow.predict(run, items, out, overlay=overlay, overwrite=overwrite, overrides=setting or ())
    report_masks(done.summary(), json)
