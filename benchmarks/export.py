"""A run's segmenter as the run itself, compiled and exported: images a second, memory, size, and what it costs in mIoU.

    python benchmarks/export.py runs/first exported --split val --side 512

One scale, no mirror images, no CRF, fp32 unless named. The forms take turns on the same photo, and each is named as a
ratio to the run's own network. Memory is of a process that has this form alone. The compiled form is of one size; its
mIoU is not measured, as each size of photo would compile it again.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

FORMS = ("eager", "compiled", "onnx fp32", "onnx fp16", "onnx int8")
ONE = ["label.scales=[1.0]", "label.flip=false", "label.crf=none", "train.precision=fp32"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, help="folder of the exported files")
    parser.add_argument("--split", default="val")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", choices=FORMS, help="only: run this form, and print the process's memory in MB")
    given = parser.parse_args()
    photo = np.random.default_rng(0).integers(0, 256, (given.side, given.side, 3), dtype=np.uint8)
    if given.memory:
        network = form(given.memory, given.run, given.out)
        for _ in range(3):
            network(photo)
        # Not getrusage, whose peak a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
        return
    sizes = exported(given.run, given.out)
    networks = {name: form(name, given.run, given.out) for name in FORMS}
    for network in networks.values():
        network(photo)
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for _ in range(given.rounds):
        for name, network in networks.items():
            began = time.perf_counter()
            network(photo)
            seconds[name].append(time.perf_counter() - began)
    median = {name: float(np.median(found)) for name, found in seconds.items()}
    table = csv.writer(sys.stdout)
    table.writerow(["form", "images/s", "of eager", "memory MB", "file MB", f"mIoU {given.split}"])
    for name in FORMS:
        own = [sys.executable, __file__, str(given.run), str(given.out), "--side", str(given.side), "--memory", name]
        memory = subprocess.run(own, capture_output=True, text=True, check=True).stdout.split()[-1]
        ratio = round(median["eager"] / median[name], 2)
        score = "" if name == "compiled" else round(100 * miou(networks[name], given.run, given.split), 1)
        table.writerow([name, round(1 / median[name], 2), ratio, memory, sizes.get(name, ""), score])
        sys.stdout.flush()


def exported(run: Path, out: Path) -> dict[str, float]:
    """Write the files that are not there. Megabytes of each form's file."""
    from tagmask.export.onnx import export_onnx
    from tagmask.workflow import Run

    out.mkdir(parents=True, exist_ok=True)
    weights = Run(run).last.folder.model / "weights.safetensors"
    sizes = {"eager": round(weights.stat().st_size / 1e6, 1)}
    for name in FORMS[2:]:
        path = file_of(name, out)
        if not path.is_file():
            export_onnx(run, path, name.split()[1], ONE)  # type: ignore[arg-type]
        sizes[name] = round(path.stat().st_size / 1e6, 1)
    return sizes


def file_of(name: str, out: Path) -> Path:
    return out / f"{name.replace(' ', '_')}.onnx"


def form(name: str, run: Path, out: Path) -> Callable[[np.ndarray], np.ndarray]:
    """A form of the segmenter: labels (H,W) of a photo uint8 (H,W,3)."""
    if name.startswith("onnx"):
        from tagmask.export.runtime import Exported

        network = Exported(file_of(name, out))
        return lambda photo: network.run(photo)[0]
    import torch

    from tagmask.export.network import Network
    from tagmask.workflow import Run
    from tagmask.workflow.opened import opened

    module: Callable = Network(opened(Run(run).last, ONE).inference)
    if name == "compiled":
        module = torch.compile(module)

    def labels(photo: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(photo)[None])[0][0].numpy()

    return labels


def miou(network: Callable[[np.ndarray], np.ndarray], run: Path, split: str) -> float:
    """Of photos at their own size."""
    from torch import from_numpy

    from tagmask.data import read_mask
    from tagmask.evaluate import ConfusionMatrix
    from tagmask.workflow import Run

    collection = Run(run).collection
    counts = ConfusionMatrix(len(collection.classes) + 1)
    for item in collection.split(split):
        if item.mask is not None:
            truth = read_mask(item.mask, len(collection.classes), collection.colour_map)
            counts.update(from_numpy(network(np.array(Image.open(item.image).convert("RGB")))), truth)
    return counts.miou()


if __name__ == "__main__":
    main()
