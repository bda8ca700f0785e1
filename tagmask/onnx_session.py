"""An ONNX file opened by onnxruntime, on a GPU where there is one. It needs no torch."""

from __future__ import annotations

import os
from typing import Any


def open_session(path: str | os.PathLike[str], threads: int = 0) -> Any:
    """An InferenceSession. threads: of a CPU, 0 for as many as there are cores.

    Raises ImportError without onnxruntime, and for a broken file errors of onnxruntime, which documents none.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside other work, spinning is slow
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
