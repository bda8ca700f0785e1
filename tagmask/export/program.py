"""A run's segmenter as a program of torch.export, which runs without tagmask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tagmask.export.compare import check, compare, summary, to_export
from tagmask.export.network import Network, program
from tagmask.files import written
from tagmask.workflow.opened import Run


def export_program(run: Run | str | Path, out: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Write what ``torch.export.load(out).module()`` runs: photos uint8 (B,H,W,3) in, labels and probabilities out.

    Compared, and returned, as by ``export_onnx``. Raises ConfigError for a run without a segmenter, DataError where the
    labels differ.
    """
    run, out = to_export(run, overrides), Path(out)
    traced = program(Network(run.inference))
    module = traced.module()
    differ = compare(run, lambda photo: module(torch.from_numpy(photo)[None])[0][0].numpy())
    check(differ, out)
    with written(out) as part, part.open("wb") as file:
        torch.export.save(traced, file)
    return summary(run, out, out.stat().st_size, differ)
