"""Small ONNX networks that tests write in the layout of U²-Net's published files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest


def write_saliency(
    path: Path, shape: Sequence[int | str] = (1, 3, 32, 32), end: str = "Sigmoid", inputs: int = 1, keep: int = 1
) -> Path:
    """A network whose map is the mean over an image's channels, through ``end``. Skips without the package onnx.

    shape: of its inputs. keep: whether the map has a channel.
    """
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    axes = onnx.numpy_helper.from_array(__import__("numpy").array([1]), "axes")
    nodes = [
        helper.make_node("ReduceMean", ["image0", "axes"], ["mean"], keepdims=keep),
        helper.make_node(end, ["mean"], ["first"]),
        helper.make_node("Neg", ["mean"], ["second"]),
    ]
    graph = helper.make_graph(
        nodes,
        "saliency",
        [helper.make_tensor_value_info(f"image{i}", floats, shape) for i in range(inputs)],
        [helper.make_tensor_value_info(name, floats, None) for name in ("first", "second")],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
