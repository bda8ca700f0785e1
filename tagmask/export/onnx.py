"""A run's segmenter as an ONNX file, compared with the run's own labels before it is kept."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tagmask.errors import DataError
from tagmask.export.compare import SIDES, check, compare, photos_of, shown, summary, to_export
from tagmask.export.network import Network, program
from tagmask.export.runtime import META, Exported, need
from tagmask.files import written
from tagmask.training.card import without_names
from tagmask.workflow.opened import Run
from tagmask.workflow.stamp import mask_note

Precision = Literal["fp32", "fp16", "int8"]
OPSET = 20
"""Of ONNX: the first one whose Resize takes what antialiasing needs; onnxruntime knows it from 1.17 on."""
CALIBRATION = 32
"""Photos that the ranges of int8 are measured on."""


def export_onnx(
    run: Run | str | Path,
    out: str | Path,
    precision: Precision = "fp32",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the run's last segmenter as one file: photos uint8 (B,H,W,3) in, labels uint8 (B,H,W) out, any B, H and W.

    Its labels are compared with the run's own on three sizes of the run's photos. Returns file, size in MB, the share
    of pixels that differ, by size, and notes. precision: fp16 halves the file; int8 quarters it, with ranges measured
    on photos of the run. The dense CRF and tiles are left out: an exported network has neither.

    Raises ConfigError for a run without a segmenter and without the packages, DataError where more than DIFFER of the
    labels differ in fp32; then no file is written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package)
    run, out = to_export(run, overrides), Path(out)
    with written(out) as part:
        write(Network(run.inference), part, _about(run, precision))
        if precision != "fp32":
            reduce(part, precision, run)
        exported = Exported(part)
        try:
            differ = compare(run, lambda photo: exported.run(photo)[0])
        except Exception as error:  # onnxruntime has a class for each reason
            raise DataError(
                f"{out}: not written, since onnxruntime does not run it ({' '.join(str(error).split())[:200]}). The "
                "head 'upernet' is known for this; '--to torch' may do."
            ) from error
        if precision == "fp32":
            check(differ, out)
        size = part.stat().st_size
    return summary(run, out, size, differ) | {"precision": precision, "opset": OPSET}


def _about(run: Run, precision: Precision) -> dict[str, Any]:
    """What the file says of itself."""
    config = run.inference.config
    note = mask_note(run, False)
    note["settings"] |= {"label.crf": "none", "label.tile": None, "train.precision": precision}
    return note | {
        "classes": run.model_note["classes"],
        "method": run.config.method.name,
        "encoder": run.config.encoder.name,
        "weights": without_names(run.model_note["weights_origin"]),
        "supervision": run.model_note["supervision"],
        "max_side": config.max_side,
        "version": version("tagmask"),
    }


def write(network: Network, path: Path, about: dict[str, Any]) -> None:
    """Write a network as one file that says ``about`` of itself."""
    import onnx

    with _quiet():
        # Not optimised here: onnxruntime does it when it loads, and the exporter's optimiser fails on several scales.
        exported = torch.onnx.export(
            program(network),
            (),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=["photos"],
            output_names=["labels", "confidence"],
        )
        assert exported is not None
        model = exported.model_proto
    for value in (*model.graph.input, *model.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, ("photos", "height", "width")):
            dim.dim_param = name
    _forget_sources(model)
    onnx.helper.set_model_props(model, {META: json.dumps(about, ensure_ascii=False)})
    onnx.save(model, path)


def _forget_sources(model: Any) -> None:
    """Take out the exporter's notes on each node: lines of code, with the paths of this computer."""
    for place in (model, model.graph, *model.functions):
        place.ClearField("metadata_props")
        place.ClearField("doc_string")
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer)
    nodes = (node for place in (model.graph, *model.functions) for node in place.node)
    for part in (*values, *nodes):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def reduce(path: Path, precision: Precision, run: Run) -> None:
    """Rewrite a file with weights of 16 bits, or weights and maps of 8."""
    import onnx

    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = onnx.load(path)
        half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
        onnx.save(half, path)
        return
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Photos(CalibrationDataReader):
        def __init__(self, photos: Sequence[np.ndarray]) -> None:
            self.rest = iter([{"photos": photo[None]} for photo in photos])

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self.rest, None)

    photos = [shown(photo, max(SIDES)) for photo in photos_of(run, CALIBRATION)]
    with _quiet():
        quantize_static(
            path,
            path,
            Photos(photos),
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' words on their own working."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
