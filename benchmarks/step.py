"""Seconds of a training step over the seconds of the passes that it cannot avoid, measured in the same process.

The floor of a ``baseline`` step after warm-up: one forward and backward pass of encoder, classifier and segmentation
head on the batch, one forward pass without gradient on the mirror images, and the refinement of both thresholds'
maps. The step is ``Method.losses`` + backward + clip + optimiser, as in ``tagmask/training/loop.py``.

    python benchmarks/step.py                      # 512 px, batch 4, ResNet-50, bf16 where the machine is fast at it
    python benchmarks/step.py --crop 224 --batch 16 --profile
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

from tagmask.config import load_config
from tagmask.losses import balanced_cross_entropy
from tagmask.methods import build_method
from tagmask.methods.baseline import Baseline
from tagmask.training.loop import make_optimizer
from tagmask.types import Batch
from tagmask.workflow.plan import fast_bf16

CLASSES = 20


def main() -> None:
    """Measure, print a table, save JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--refine", default="par")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="print where the step's time goes")
    parser.add_argument("--json", help="file to write")
    args = parser.parse_args()
    device = torch.device(args.device)
    precision = args.precision or ("bf16" if fast_bf16(device) else "fp32")
    config = load_config(
        {
            "encoder": {"name": args.encoder, "weights": "none"},
            "views": {"crop": args.crop},
            "method": {"name": "baseline", "warmup": 0, "cam_scales": [1.0], "refine": args.refine},
        }
    )
    method = build_method(config, CLASSES)
    assert isinstance(method, Baseline)
    method.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = make_batch(args.batch, args.crop, device)
    groups = method.param_groups(1e-5)
    optimizer = make_optimizer(groups, config.train)
    parameters = [p for group in groups for p in group["params"]]

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    labels = torch.randint(0, CLASSES + 1, (args.batch, args.crop, args.crop), device=device)
    half = F.interpolate(batch.images, scale_factor=0.5, mode="bilinear")
    stacks = torch.rand(args.batch, 2 * (int(batch.tags.sum(1).max()) + 1), *half.shape[-2:], device=device)

    def step() -> None:
        with autocast():
            losses = method.losses(batch, 1)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def train_pass() -> None:
        with autocast():
            features = method.encoder(batch.images)
            scores = method.classifier(features.maps[-1])
            loss = F.multilabel_soft_margin_loss(scores.float(), batch.tags)
            loss = loss + balanced_cross_entropy(method.decoder(features), labels)
        loss.backward()
        optimizer.zero_grad(set_to_none=True)

    def mirror_pass() -> None:
        with torch.no_grad(), autocast():
            method.classifier.cam(method.encoder(batch.images.flip(-1)).maps[-1])

    def refinement() -> None:
        if method.refiner is not None:
            with torch.no_grad():
                method.refiner(half, stacks)

    parts = {"step": step, "train pass": train_pass, "mirror pass": mirror_pass, "refinement": refinement}
    times = measure(parts, args.repeat, device)
    floor = sum(times[name] for name in ("train pass", "mirror pass", "refinement"))
    for name, seconds in times.items():
        print(f"{name:12} {seconds:8.3f} s")
    print(f"{'floor':12} {floor:8.3f} s")
    print(f"{'step/floor':12} {times['step'] / floor:8.3f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**vars(args), "precision": precision, "seconds": times, "ratio": times["step"] / floor}, file)
    if args.profile:
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=45))


def make_batch(size: int, crop: int, device: torch.device) -> Batch:
    """Noise images with one to three of the classes each."""
    generator = torch.Generator().manual_seed(0)
    tags = torch.zeros(size, CLASSES)
    for i in range(size):
        tags[i, torch.randperm(CLASSES, generator=generator)[: 1 + i % 3]] = 1
    boxes = torch.tensor([[0, 0, crop, crop]]).repeat(size, 1)
    images = torch.rand(size, 3, crop, crop, generator=generator).contiguous(memory_format=torch.channels_last)
    return Batch(images, tags, boxes, {}, [str(i) for i in range(size)], generator).to(device)


def measure(parts: dict[str, Callable[[], None]], repeat: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each part; the parts take turns, so that a slow moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeat + 1):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
