"""What a trained row costs on this machine: images a second and memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from tagmask.data import read_image, tag_vector
from tagmask.errors import DataError
from tagmask.label import Look
from tagmask.reproduce.table import TRAINING
from tagmask.training.folder import environment
from tagmask.workflow import Run
from tagmask.workflow.evaluate import OUTPUTS
from tagmask.workflow.opened import default_device
from tagmask.workflow.stamp import in_force, make_stamp
from tagmask.workflow.timing import now, time_step

PHOTOS = 20
GIB = 2**30


def measure(run: Run, split: str, score: str) -> dict[str, Any]:
    """Cost of 'cam', 'segmenter' or 'training': {name, fps, memory, stamp}, with 'measured' in the stamp.

    fps of a score: the first PHOTOS photos of the split, read before, are looked at one after the other with all that
    the score is made with (scales, mirror images, CRF); a pass over the same photos goes before it. fps of training:
    images of one step with all terms, after another, as ``time_step`` has it. memory: GiB that tensors take on the GPU
    at the peak, the network's weights included; None on a CPU. Raises DataError for a split without photos.
    """
    collection, config = run.collection, run.config
    items = collection.split(split)[:PHOTOS]
    if not items:
        raise DataError(f"{collection.root}: split '{split}' has no photo to measure '{score}' on.")
    device = default_device(config)
    settings: dict[str, Any] = {}
    if score == TRAINING:
        seconds, memory = _peak(lambda: time_step(config, collection), device)
        images, of = config.train.batch_size, f"a step of {config.train.batch_size} crops of {config.views.crop}"
    else:
        inference, settings = run.inference, in_force(config, OUTPUTS[score])
        photos = [read_image(item.image) for item in items]
        tags = [None if item.tags is None else tag_vector(item.tags, len(collection.classes)) for item in items]

        def look_at_all() -> float:
            began = now(device)
            for photo, given in zip(photos, tags, strict=True):
                look = Look(inference, photo, given)
                look.cams if score == "cam" else look.prediction  # noqa: B018 (made here)
            return now(device) - began

        look_at_all()
        seconds, memory = _peak(look_at_all, device)
        if memory is not None:
            memory += sum(t.numel() * t.element_size() for t in run.method.state_dict().values()) / GIB
        images = len(photos)
        height, width = (median(photo.shape[side] for photo in photos) for side in (-2, -1))
        of = f"{images} photos of {width:g} x {height:g}, one at a time"
    stamp = make_stamp(run, split, items, "", settings, tags=score == "cam")
    measured = {"device": _name(device), "precision": config.train.precision, "of": of}
    return {
        "name": f"{score} (cost)",
        "fps": images / seconds,
        "memory": memory,
        "stamp": stamp | {"measured": measured},
    }


def _peak(call: Callable[[], float], device: torch.device) -> tuple[float, float | None]:
    """What ``call`` gives, and the GiB that it takes on a GPU over what was taken before."""
    if device.type != "cuda":
        return call(), None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    return call(), (torch.cuda.max_memory_allocated(device) - before) / GIB


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{environment()['processor']}, {torch.get_num_threads()} threads"
