"""A run's segmenter as an ONNX file, compared with the run's own labels before it is kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tagmask.data import read_image
from tagmask.errors import DataError
from tagmask.export.network import Network, program
from tagmask.export.runtime import META, Exported, need
from tagmask.files import written
from tagmask.label import Inference, Look
from tagmask.workflow.opened import Run, opened
from tagmask.workflow.stamp import mask_note

Precision = Literal["fp32", "fp16", "int8"]
OPSET = 20
"""Of ONNX: the first one whose Resize takes what antialiasing needs; onnxruntime knows it from 1.17 on."""
DIFFER = 0.001
"""Share of pixels that may have another label than by PyTorch."""
SIDES = (192, 320, 512)
"""Long sides of the photos that an export is compared on."""
CALIBRATION = 32
"""Photos that the ranges of int8 are measured on."""


def export_onnx(
    run: Run | str | Path,
    out: str | Path,
    precision: Precision = "fp32",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the run's last segmenter as one file: photos uint8 (B,H,W,3) in, labels uint8 (B,H,W) out, any B, H and W.

    Its labels are compared with the run's own on three sizes of the run's photos. Returns file, size in MB, and the
    share of pixels that differ, by size. precision: fp16 halves the file; int8 quarters it, with ranges measured on
    photos of the run. The dense CRF and tiles are left out: an exported network has neither.

    Raises ConfigError for a run without a segmenter and without the packages, DataError where more than DIFFER of the
    labels differ in fp32; then no file is written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package)
    run, out = opened((run if isinstance(run, Run) else Run(run)).last, overrides), Path(out)
    with written(out) as part:
        _write(Network(run.inference), part, _about(run, precision))
        if precision != "fp32":
            _reduce(part, precision, run)
        differ = compare(run, Exported(part))
        worst = max(differ.values())
        if precision == "fp32" and worst > DIFFER:
            raise DataError(
                f"{out}: not written, since {worst:.2%} of the labels differ from PyTorch's (at most {DIFFER:.1%}). "
                "This is a fault of the exporter or of onnxruntime: try other versions of them."
            )
        size = part.stat().st_size
    return {"file": str(out), "megabytes": round(size / 1e6, 1), "opset": OPSET, "differ": differ}


def _about(run: Run, precision: Precision) -> dict[str, Any]:
    """What the file says of itself."""
    config = run.inference.config
    note = mask_note(run, False)
    note["settings"] |= {"label.crf": "none", "label.tile": None, "train.precision": precision}
    return note | {
        "classes": run.model_note["classes"],
        "method": run.config.method.name,
        "encoder": run.config.encoder.name,
        "weights": run.model_note["weights_origin"],
        "supervision": run.model_note["supervision"],
        "max_side": config.max_side,
        "version": version("tagmask"),
    }


def _write(network: Network, path: Path, about: dict[str, Any]) -> None:
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
    onnx.helper.set_model_props(model, {META: json.dumps(about, ensure_ascii=False)})
    onnx.save(model, path)


def _reduce(path: Path, precision: Precision, run: Run) -> None:
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

    photos = [_shown(photo, max(SIDES)) for photo in photos_of(run, CALIBRATION)]
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


def compare(run: Run, exported: Exported) -> dict[str, float]:
    """Share of pixels whose labels differ from the run's own in fp32 without CRF, by the photos' sizes."""
    config = run.config.model_copy(deep=True)
    config.label = run.inference.config.model_copy(update={"crf": "none", "tile": None})
    config.train = config.train.model_copy(update={"precision": "fp32"})
    plain = Inference(run.method.float(), config)
    found = {}
    for side, photo in zip(SIDES, photos_of(run, len(SIDES)), strict=True):
        shown = _shown(photo, side)
        wanted = Look(plain, torch.from_numpy(shown).permute(2, 0, 1)).prediction[0].cpu().numpy()
        labels, _ = exported.run(shown)
        found["{}x{}".format(*shown.shape)] = round(float((labels != wanted).mean()), 6)
    return found


def photos_of(run: Run, count: int) -> list[Tensor]:
    """That many photos uint8 (3,H,W) that the run learned from; some twice where it has fewer."""
    items = run.collection.split("train")
    step = max(1, len(items) // count)
    return [read_image(items[i * step % len(items)].image) for i in range(count)]


def _shown(photo: Tensor, side: int) -> np.ndarray:
    """uint8 (h,w,3) of a photo (3,H,W), the long side brought to ``side``."""
    image = Image.fromarray(photo.permute(1, 2, 0).numpy())
    factor = side / max(image.size)
    return np.asarray(image.resize([max(1, round(length * factor)) for length in image.size]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' words on their own working."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
