"""What ``tagmask doctor`` computes to see that torch computes rightly here: sums, a tiny training, a dense CRF."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import RunConfig, load_config
from tagmask.data import read_image, write_demo
from tagmask.data.collection import tag_vector
from tagmask.errors import TrainingError
from tagmask.label import Look
from tagmask.refine import DenseCRF
from tagmask.types import IGNORE
from tagmask.workflow.opened import Run
from tagmask.workflow.plan import fast_bf16
from tagmask.workflow.train import train

STEPS = 30
LOSS = 0.6
"""Classification loss that the last steps must be below. It begins at 0.72; seeds 0 to 3 end between 0.41 and 0.45."""
CRF = DenseCRF(iterations=5, gaussian_sxy=2.7, bilateral_sxy=6.3, bilateral_srgb=61.0)
CRF_PIXELS = ((0, 0), (3, 5), (6, 7), (9, 11))
CRF_EXPECTED = (
    (0.01903, 0.02952, 0.95145),
    (0.42995, 0.41359, 0.15646),
    (0.84910, 0.14733, 0.00357),
    (0.87000, 0.12870, 0.00130),
)
"""Probabilities of the three classes at ``CRF_PIXELS`` (y, x) of ``crf_input``, by a loop in float64 in the tests."""


def check_sums(device: torch.device) -> str:
    """Products and convolutions of small integers, which floats hold exactly, against int64. Raises TrainingError.

    Returns what was computed, in words.
    """
    generator = torch.Generator().manual_seed(0)
    types = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if fast_bf16(device) else {})
    for name, dtype in types.items():
        # bfloat16 holds integers up to 256: 3 · 3 · 8 products of -1, 0 and 1 stay below.
        left, right = (torch.randint(-1, 2, shape, generator=generator) for shape in ((128, 200), (200, 96)))
        photos, kernels = (torch.randint(-1, 2, s, generator=generator) for s in ((2, 8, 20, 24), (16, 8, 3, 3)))
        windows = photos.unfold(2, 3, 1).unfold(3, 3, 1)
        wanted = {
            "matrix product": left @ right,
            "convolution": torch.einsum("bchwij,ocij->bohw", windows, kernels),
        }
        made = {
            "matrix product": left.to(device, dtype) @ right.to(device, dtype),
            "convolution": F.conv2d(photos.to(device, dtype), kernels.to(device, dtype)),
        }
        for what, value in made.items():
            if not torch.equal(value.cpu().double(), wanted[what].double()):
                raise TrainingError(f"A {what} in {name} on {device} gives wrong numbers.")
    return f"products and convolutions in {' and '.join(types)} on {device}"


def check_training() -> str:
    """Train ``baseline`` on eight drawn scenes and label one. Returns what was found, in words.

    Raises TrainingError for losses that are not finite or do not fall, and for labels that are none of the tags.
    """
    with tempfile.TemporaryDirectory() as place:
        run = Run(Path(place, "run"), tiny_config(write_demo(Path(place, "scenes"), images=8, size=(64, 80))))
        train(run, console=Console(quiet=True))
        losses = [entry["losses"]["cls"] for entry in run.folder.log() if "losses" in entry]
        item = next(item for item in run.collection.split("train") if item.tags)
        tags = tag_vector(item.tags or (), len(run.collection.classes))
        labels, _ = Look(run.inference, read_image(item.image), tags).mask
    last = sum(losses[-5:]) / 5
    if not last < LOSS:  # NaN fails, too
        raise TrainingError(f"The loss went from {losses[0]:.2f} to {last:.2f} in {STEPS} steps, not below {LOSS}.")
    found = set(labels.unique().tolist())
    if not found <= {0, IGNORE, *(tag + 1 for tag in item.tags or ())}:
        raise TrainingError(f"A mask holds the labels {sorted(found)}, which its photo's tags do not name.")
    return f"loss {losses[0]:.2f} to {last:.2f} in {STEPS} steps; a mask"


def tiny_config(scenes: Path) -> RunConfig:
    """A training of seconds on drawn scenes, of a network of timm's for tests, from random weights, seed 0."""
    return load_config(
        {
            "data": {"root": str(scenes)},
            "views": {"crop": 64, "scale": [1.0, 1.0]},
            "encoder": {"name": "test_resnet", "weights": "none", "norm_eval": False},
            "method": {"name": "baseline", "warmup": 20, "head": "compact", "head_options": {"hidden": 16}},
            "train": {
                "steps": STEPS, "batch_size": 4, "lr": 0.002, "head_lr": 1.0, "warmup": 1, "freeze_norm": False,
                "workers": 0, "log_every": 1, "checkpoint_every": STEPS,
            },
            "label": {"cam_scales": [1.0]},
        }
    )  # fmt: skip


def check_crf() -> str:
    """A dense CRF on ``crf_input`` against ``CRF_EXPECTED``. Returns the difference, in words; raises TrainingError."""
    result = CRF(*crf_input())[0]
    found = torch.stack([result[:, y, x] for y, x in CRF_PIXELS])
    difference = (found - torch.tensor(CRF_EXPECTED)).abs().max().item()
    if not difference < 1e-3:
        raise TrainingError(f"Probabilities of the dense CRF are wrong by {difference:.2g}.")
    return "probabilities as expected within 0.001"


def crf_input() -> tuple[Tensor, Tensor]:
    """A picture uint8 (1,3,10,12) and probabilities (1,3,10,12) by formulas, without random numbers."""
    y, x = torch.meshgrid(torch.arange(10), torch.arange(12), indexing="ij")
    image = torch.stack([20 * y, 255 - 15 * x, 40 + 90 * (x // 6)])
    scores = torch.stack([0.3 * (x - 5), 0.4 * (y - 4), 1.5 * ((3 * x + 5 * y) % 7 - 3) / 3])
    return image.byte()[None], scores.float().softmax(0)[None]
