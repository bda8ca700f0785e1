"""``tagmask predict``: masks for new photos, without tags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common
from tagmask.cli.label import report_masks
from tagmask.errors import ConfigError


@common.app.command(epilog="Example: `tagmask predict runs/first holiday/ -o masks/`")
def predict(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="run folder, user/name on the model hub, or .onnx file", show_default=False),
    ],
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="files, folders, quoted globs, shards or URIs")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="folder or URI of the masks")] = "predictions",
    setting: Annotated[list[str] | None, typer.Option("--set", "-s", help="override as in label.tile=1024")] = None,
    listed: Annotated[
        Path | None, typer.Option("--list", help="file of photo names, one a line: only these of the folders named")
    ] = None,
    overlay: Annotated[bool, typer.Option(help="also write <name>_overlay.jpg to look at")] = False,
    overwrite: Annotated[bool, typer.Option(help="make masks again that are there already")] = False,
    engine: common.Engine = None,
    json: common.Json = False,
) -> None:
    """Segment photos that have no tags. Large photos are cut into overlapping tiles."""
    if run.suffix == ".onnx":
        if setting:
            raise ConfigError(f"{run}: its settings are fixed. Give them to 'tagmask export', or predict with the run.")
        if engine == "ray":
            raise ConfigError(f"{run}: --engine ray is for a run; an .onnx file predicts in this process.")
        from tagmask.export.runtime import predict_exported

        done = predict_exported(run, photos, out, overlay, overwrite, listed=listed)
    else:
        from tagmask import workflow
        from tagmask.label import hub

        settings = common.with_engine(setting, engine)
        done = workflow.predict(hub.local(run), photos, out, overlay, overwrite, settings, listed=listed)
    report_masks(done.summary(), json)
