"""Seconds of a training step over the seconds of the passes that it cannot avoid, measured in the same process.

The step is ``Method.losses`` after warm-up + backward + clip + optimiser + ``after_step``, as in
``tagmask/training/step.py``. The floor, by method:

    baseline   forward and backward pass of encoder, classifier and segmentation head on the batch, a forward pass
               without gradient on the mirror images, and the refinement of both thresholds' maps
    tscd       the same, and forward and backward of encoder, classifier and head on the second view, the
               equivariance loss and the dense energy; self correspondence itself is not in it
    cosa       forward and backward of encoder, both classifiers and head on the strong view; the same forward without
               gradient on the weak view and its mirror images; the running average is not in it
    eca        as baseline, its maps refined together with those of the regions, and the guide's pass without gradient,
               and forward and backward of encoder and classifier on two local views of half the side; spreading the
               seeds and the correspondence are not in it

    python benchmarks/step.py                      # baseline, 512 px, batch 4, ResNet-50, bf16 where that is fast
    python benchmarks/step.py --method cosa --crop 224 --batch 16 --profile
    python benchmarks/step.py --method eca --encoder mit_b1 --batch 8 --device cuda       # and what the cache saves:
    python benchmarks/step.py ... --set method.guide.view=photo method.guide.cache=FOLDER # the guide's pass beside it
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.config import load_config
from tagmask.data.views import crop_affine
from tagmask.losses import balanced_cross_entropy, equivariance
from tagmask.methods import build_method
from tagmask.methods.common.dense_energy import dense_energy
from tagmask.training.step import make_optimizer
from tagmask.types import Batch, View
from tagmask.workflow.plan import fast_bf16

CLASSES = 20
Passes = dict[str, Callable[[], None]]
Autocast = Callable[[], torch.autocast]


def main() -> None:
    """Measure, print a table, save JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--method", choices=sorted(METHODS), default="baseline")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings")
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
            "views": {"crop": args.crop, "local": {"size": args.crop // 2}},
            "method": {"name": args.method, **METHODS[args.method]},
        },
        overrides=args.set,
    )
    method: Any = build_method(config, CLASSES)
    method.train().to(device, memory_format=torch.channels_last)
    batch = make_batch(args.batch, args.crop, device)
    groups = method.param_groups(1e-5)
    optimizer = make_optimizer(groups, config.train)
    parameters = [p for group in groups for p in group["params"]]

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        with autocast():
            losses = method.losses(batch, 1)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step(1)

    passes = FLOORS[args.method](method, batch, autocast)

    def clean(run: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            run()
            optimizer.zero_grad(set_to_none=True)

        return timed

    parts = {"step": step} | {name: clean(run) for name, run in passes.items()}
    times = measure(parts, args.repeat, device)
    floor = sum(times[name] for name in passes)
    for name, seconds in times.items():
        print(f"{name:12} {seconds:8.3f} s")
    print(f"{'floor':12} {floor:8.3f} s")
    print(f"{'step/floor':12} {times['step'] / floor:8.3f}")
    print(f"{'steps/s':12} {1 / times['step']:8.3f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({**vars(args), "precision": precision, "seconds": times, "ratio": times["step"] / floor}, file)
    if args.profile:
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=45))


def train_pass(method: Any, images: Tensor, batch: Batch, autocast: Autocast, auxiliary: bool = False) -> None:
    """Forward and backward of encoder, classifiers and head with the plainest losses on them."""
    with autocast():
        features = method.encoder(images)
        scores = [method.classifier(features.maps[-1])]
        if auxiliary:
            scores.append(method.auxiliary(features.maps[method.config.auxiliary_map]))
        logits = method.decoder(features)
        loss = torch.stack([F.multilabel_soft_margin_loss(s.float(), batch.tags) for s in scores]).sum()
        labels = torch.zeros(len(images), *images.shape[-2:], dtype=torch.long, device=images.device)
        loss = loss + balanced_cross_entropy(logits, labels)
    loss.backward()


def baseline_floor(method: Any, batch: Batch, autocast: Autocast) -> Passes:
    half = F.interpolate(batch.images, scale_factor=0.5, mode="bilinear")
    maps = 2 * (int(batch.tags.sum(1).max()) + 1)
    stacks = torch.rand(len(half), maps, *half.shape[-2:], device=half.device)

    def mirror() -> None:
        with torch.no_grad(), autocast():
            method.classifier.cam(method.encoder(batch.images.flip(-1)).maps[-1])

    passes: Passes = {"train pass": lambda: train_pass(method, batch.images, batch, autocast), "mirror pass": mirror}
    if method.refiner is not None:
        passes["refinement"] = lambda: method.refiner(half, stacks)
    return passes


def tscd_floor(method: Any, batch: Batch, autocast: Autocast) -> Passes:
    scale = method.config.affine.scale
    small = F.interpolate(batch.images, scale_factor=scale, mode="bilinear")
    classes = method.classes + 1
    logits = torch.rand(len(small), classes, *(n // 16 for n in batch.images.shape[-2:]), device=small.device)
    maps = torch.rand(len(small), method.classes, *(n // 16 for n in small.shape[-2:]), device=small.device)
    labels = torch.zeros(len(small), *batch.images.shape[-2:], dtype=torch.long, device=small.device)

    def energy() -> None:
        dense_energy(method.energy, batch, logits.requires_grad_(), labels).backward()

    passes = baseline_floor(method, batch, autocast)
    passes["second view"] = lambda: train_pass(method, small, batch, autocast)
    passes["equivariance"] = lambda: equivariance(maps.requires_grad_(), maps.flip(-1)).backward()
    if method.energy is not None:
        passes["dense energy"] = energy
    return passes


def cosa_floor(method: Any, batch: Batch, autocast: Autocast) -> Passes:
    def weak() -> None:
        with torch.no_grad(), autocast():
            network = method.assigner
            features = network.encoder(torch.cat([batch.images, batch.images.flip(-1)]))
            network.classifier.cam(features.maps[-1])
            network.auxiliary.cam(features.maps[method.config.auxiliary_map])
            network.decoder(features)

    strong = batch.views["strong"].images
    return {"train pass": lambda: train_pass(method, strong, batch, autocast, auxiliary=True), "weak pass": weak}


def eca_floor(method: Any, batch: Batch, autocast: Autocast) -> Passes:
    local = batch.views["local"].images.flatten(0, 1)
    tags = batch.tags.repeat_interleave(len(local) // len(batch.tags), 0)
    half = F.interpolate(batch.images, scale_factor=0.5, mode="bilinear")
    stacks = 2 if method.config.high == method.config.low else 3
    maps = torch.rand(len(half), stacks * (int(batch.tags.sum(1).max()) + 1), *half.shape[-2:], device=half.device)

    def look() -> None:
        with torch.no_grad(), autocast():
            method.guide.see(batch.images, batch.boxes)

    def local_pass() -> None:
        with autocast():
            scores = method.classifier(method.encoder(local).maps[-1])
            loss = F.multilabel_soft_margin_loss(scores.float(), tags)
        loss.backward()

    passes = baseline_floor(method, batch, autocast)
    if method.refiner is not None:
        passes["refinement"] = lambda: method.refiner(half, maps)
    return passes | {"guide": look, "local views": local_pass}


METHODS: dict[str, dict[str, Any]] = {
    "baseline": {"warmup": 0, "cam_scales": [1.0]},
    "tscd": {"warmup": 0, "cam_scales": [1.0], "affinity": "none"},
    "cosa": {"warmup": 0},
    "eca": {
        "warmup": 0,
        "cam_scales": [1.0],
        "affinity": "none",
        "guide": {"encoder": {"name": "vit_small_patch8_224.dino", "weights": "none"}},
    },
}
FLOORS = {"baseline": baseline_floor, "tscd": tscd_floor, "cosa": cosa_floor, "eca": eca_floor}


def make_batch(size: int, crop: int, device: torch.device) -> Batch:
    """Noise images with one to three of the classes each."""
    generator = torch.Generator().manual_seed(0)
    tags = torch.zeros(size, CLASSES)
    for i in range(size):
        tags[i, torch.randperm(CLASSES, generator=generator)[: 1 + i % 3]] = 1
    boxes = torch.tensor([[0, 0, crop, crop]]).repeat(size, 1)
    images = torch.rand(size, 3, crop, crop, generator=generator).contiguous(memory_format=torch.channels_last)
    affine = torch.eye(2, 3).repeat(size, 1, 1)
    half = crop // 2
    views = {
        "strong": View(images.flip(1).contiguous(memory_format=torch.channels_last), boxes, affine),
        "local": View(
            torch.stack([images[:, :, :half, :half], images[:, :, -half:, -half:]], 1),
            torch.tensor([0, 0, half, half]).repeat(size, 2, 1),
            torch.stack([crop_affine(i, i, half, crop, False) for i in (0, crop - half)]).repeat(size, 1, 1, 1),
        ),
        "photo": View(images, boxes, affine),
    }
    return Batch(images, tags, boxes, views, [str(i) for i in range(size)], generator).to(device)


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
