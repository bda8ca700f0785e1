"""``tagmask export``: a run's segmenter as a file that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask export runs/first -o segmenter.onnx`")
def export(
    run: common.RunPath,
    overrides: common.Overrides = None,
    to: Annotated[Literal["onnx", "torch"], typer.Option(help="onnx; torch: a program of torch.export")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="file to write; default: RUN/segmenter.onnx or .pt2")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="of weights (fp16), or of weights and maps (int8); for onnx")
    ] = "fp32",
    json: common.Json = False,
) -> None:
    """Write the segmenter with its preprocessing: photos of any size in, labels out. It is compared with the run."""
    from tagmask.errors import ConfigError
    from tagmask.export.onnx import export_onnx
    from tagmask.export.program import export_program

    out = out or run / ("segmenter.onnx" if to == "onnx" else "segmenter.pt2")
    if to == "torch" and precision != "fp32":
        raise ConfigError("--precision is for --to onnx: a program of torch.export keeps the weights as they are.")
    if to == "onnx":
        done = export_onnx(run, out, precision, overrides or ())
    else:
        done = export_program(run, out, overrides or ())
    if json:
        common.print_json(done)
        return
    differ = ", ".join(f"{share:.2%} at {size}" for size, share in done["differ"].items())
    common.say(f"{done['file']}: {done['megabytes']} MB. Labels that differ from the run's: {differ}")
    for note in done["notes"]:
        common.say(note, "yellow")
