"""Weights for a small vision transformer where none are at hand: it learns a pretrained CNN's feature maps.

Of the data only photos are used, neither tags nor masks; the split says which. Every photo's map of the teacher's last
features is computed once at each of a few sizes, reduced to its principal components and kept; the student then sees
random crops, flipped and with other colours, and predicts from each patch's token the map there, from its class token
the crop's mean. So both say something about the picture, which an untrained transformer's do not. It is a stand-in for
ImageNet weights and far from as good: the printed share of the teacher's variance, on every tenth photo, which is not
learnt from, says how far. It runs on the CPU, and all maps are in memory at once, before they are reduced some 6 MB a
photo.

    export TAGMASK_WEIGHTS=FOLDER    # with the teacher's, resnet50_v1_imagenet.safetensors, or --teacher-weights FILE
    python benchmarks/distil_vit.py --data photos --split train --out vit.safetensors
    tagmask reproduce msrc14/crt_loops --data photos encoder.name=deit_tiny_patch16_224 encoder.weights=vit.safetensors

The latter with train.lr=5e-4 train.steps=200 method.weight_l1=0, too: at the table's own rate, which is for ImageNet
weights, these learn too little for any class map to be positive.

What was cut off goes on from ``--out``'s .part file; with other settings, photos or teacher that is refused.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam.maps import resize
from tagmask.config import DataConfig, EncoderConfig
from tagmask.data import open_data, read_image
from tagmask.data.collection import hash_ids
from tagmask.encoders import Encoder, build_encoder
from tagmask.encoders.timm_vit import TimmViT

Views = list[list[tuple[Tensor, Tensor]]]
"""Of each photo and size the pixels (3,H,W) and the teacher's map (C,h,w)."""
HELD_OUT = 10
"""Of so many photos one is only scored."""
SAVE_EVERY = 100
"""Steps between two saves, and between two lines of progress."""


class Student(nn.Module):
    """A transformer that predicts maps of ``channels`` from its patches and their mean from its class token."""

    def __init__(self, config: EncoderConfig, channels: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config)
        if not isinstance(self.encoder, TimmViT) or not self.encoder.has_class_token:
            raise SystemExit(f"--student {config.name}: not a plain vision transformer with a class token.")
        self.patches = nn.Linear(self.encoder.channels[-1], channels)
        self.whole = nn.Linear(self.encoder.channels[-1], channels)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """crops (B,3,H,W) in [0,1] to maps (B,C,h,w) and means (B,C)."""
        features = self.encoder(crops)
        return self.patches(features.maps[-1].movedim(1, -1)).movedim(-1, 1), self.whole(features.class_token)


def main(words: Sequence[str] | None = None) -> None:
    """Compute the teacher's maps, train the student, write its weights in timm's layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photos in any layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("--student", default="deit_tiny_patch16_224", help="a plain ViT with a class token")
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--teacher-weights", default="auto")
    parser.add_argument("--components", type=int, default=256, help="of the teacher's features")
    parser.add_argument("--crop", type=int, default=224, help="pixels")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.0, 1.3, 1.7], help="short sides, in crops")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.out.suffix != ".safetensors":
        raise SystemExit(f"--out {args.out}: give a name that ends in .safetensors.")
    torch.manual_seed(args.seed)  # a teacher may be random, too
    config = EncoderConfig(name=args.teacher, weights=args.teacher_weights)
    teacher = build_encoder(config).eval()
    if args.crop % teacher.strides[-1] or args.components > teacher.channels[-1]:
        raise SystemExit(
            f"--teacher {args.teacher} has {teacher.channels[-1]} features at every {teacher.strides[-1]} pixels: give "
            "a multiple of these as --crop and no more --components."
        )
    items = open_data(DataConfig(root=args.data), args.seed).split(args.split)
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("out", "data")}
    settings |= {"photos": hash_ids(item.id for item in items), "origin": teacher.weights_origin}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    part = args.out.with_suffix(".part")
    saved: dict[str, Any] = torch.load(part, weights_only=True) if part.is_file() else {"step": 0}
    if saved.get("settings", settings) != settings:
        raise SystemExit(f"{part}: begun with other settings or photos; remove it, or give another --out.")
    torch.manual_seed(args.seed)
    student = Student(EncoderConfig(name=args.student, weights="none"), args.components).train()
    began = time.monotonic()
    views = teach(teacher, [read_image(item.image) for item in items], args)
    if "axes" not in saved:  # their signs are not the same again on another machine
        saved["axes"] = components([maps.flatten(1).T for sizes in views for _, maps in sizes], args.components)
    views = [[(photo, reduced(maps, *saved["axes"])) for photo, maps in sizes] for sizes in views]
    print(f"teacher's maps of {len(views)} photos: {time.monotonic() - began:.0f} s", flush=True)
    train(student, views, saved | {"settings": settings}, args)
    state = {k: v.contiguous() for k, v in student.encoder.model.state_dict().items()}  # type: ignore[union-attr]
    save_file(state, args.out, metadata={"format": "pt", **settings})
    part.unlink()
    print(f"{args.out}: {args.student} after {args.steps} steps")


@torch.no_grad()
def teach(teacher: Encoder, photos: Sequence[Tensor], args: argparse.Namespace) -> Views:
    """Each photo at each size (3,H,W) uint8, with the teacher's features there (F,h,w), half precision."""
    stride = teacher.strides[-1]
    seen = []
    for photo in photos:
        views = []
        for size in args.sizes:
            factor = size * args.crop / min(photo.shape[1:])
            # Whole cells, so that crops that begin at a cell have its row of the map.
            side = [max(args.crop, stride * round(n * factor / stride)) for n in photo.shape[1:]]
            small = F.interpolate(photo[None].float(), size=side, mode="bilinear", antialias=True).round().clamp(0, 255)
            with torch.autocast("cpu", torch.bfloat16):
                maps = teacher(small / 255).maps[-1][0]
            views.append((small[0].byte(), maps.half()))
        seen.append(views)
    return seen


def components(rows: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Mean (F) of features (·,F), and axes (F,count) of most variance, scaled so that their variances sum to count."""
    total = sum(map(len, rows))
    mean = torch.stack([r.float().sum(0) for r in rows]).sum(0) / total
    covariance = torch.zeros(len(mean), len(mean))
    for centred in (r.float() - mean for r in rows):
        covariance += centred.T @ centred
    variances, axes = torch.linalg.eigh(covariance / total)
    kept = variances[-count:].sum()
    print(f"{count} components: {float(kept / variances.sum()):.1%} of the features' variance", flush=True)
    return mean, axes[:, -count:] * (count / kept).sqrt()


def reduced(maps: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Maps (F,h,w) along the axes of ``components``, (count,h,w)."""
    return torch.einsum("chw,cd->dhw", maps.float() - mean[:, None, None], axes).half()


def train(student: Student, views: Views, saved: dict[str, Any], args: argparse.Namespace) -> None:
    """Take the student to ``args.steps`` steps of AdamW with a warm-up and a cosine, saving into the .part file.

    saved: step, settings and axes, and with a step over 0 the states to go on from.
    """
    held = [v for number, v in enumerate(views) if number % HELD_OUT == 0]
    learnt = [v for number, v in enumerate(views) if number % HELD_OUT]
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.05)
    rise = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / rise) * (1 + math.cos(math.pi * s / args.steps)) / 2
    )
    stateful: dict[str, Any] = {"student": student, "optimizer": optimizer, "schedule": schedule}
    begin, part = saved["step"], args.out.with_suffix(".part")
    for name, one in stateful.items():
        if name in saved:
            one.load_state_dict(saved[name])
    began = time.monotonic()
    for step in range(begin, args.steps):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        crops, targets = draw(learnt, args.batch, args.crop, generator)
        loss = distance(student, recoloured(crops, generator), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == args.steps:
            share = explained(student, held, args)
            rate = (step + 1 - begin) / (time.monotonic() - began)
            print(f"step {step + 1}  loss {loss.item():.3f}  held out: {share:.1%}  {rate:.2f} steps/s", flush=True)
            state = saved | {name: one.state_dict() for name, one in stateful.items()} | {"step": step + 1}
            torch.save(state, part.with_suffix(".new"))
            part.with_suffix(".new").replace(part)


def draw(views: Views, count: int, crop: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crops (count,3,crop,crop) in [0,1] and the teacher's maps there (count,C,h,w), each flipped by chance."""

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    crops, targets = [], []
    for _ in range(count):
        photo_views = views[below(len(views))]
        photo, maps = photo_views[below(len(photo_views))]
        stride = photo.shape[1] // maps.shape[1]
        cells = crop // stride
        top, left = below(maps.shape[1] - cells + 1), below(maps.shape[2] - cells + 1)
        cut = photo[:, top * stride : top * stride + crop, left * stride : left * stride + crop] / 255
        target = maps[:, top : top + cells, left : left + cells].float()
        flip = [-1] if below(2) else []
        crops.append(cut.flip(flip))
        targets.append(target.flip(flip))
    return torch.stack(crops), torch.stack(targets)


def recoloured(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel of each crop by a factor of 0.7 to 1.3 around its mean, which moves by up to 0.1."""
    factor, offset = torch.rand((2, *crops.shape[:2], 1, 1), generator=generator)
    mean = crops.mean((2, 3), keepdim=True)
    return ((crops - mean) * (0.7 + 0.6 * factor) + mean + 0.2 * offset - 0.1).clamp(0, 1)


def distance(student: Student, crops: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the patches' maps, and of the class token's mean."""
    maps, whole = predicted(student, crops, targets)
    return F.mse_loss(maps, targets) + F.mse_loss(whole, targets.mean((2, 3)))


@torch.no_grad()
def explained(student: Student, views: Views, args: argparse.Namespace) -> float:
    """Share of the teacher's variance on crops of held-out photos that the patches' maps predict."""
    crops, targets = draw(views, 64, args.crop, torch.Generator().manual_seed(args.seed))
    student.eval()
    maps = torch.cat([predicted(student, part, targets)[0] for part in crops.split(16)])
    student.train()
    error = (maps - targets).pow(2).sum()
    return 1 - float(error / (targets - targets.mean((0, 2, 3), keepdim=True)).pow(2).sum())


def predicted(student: Student, crops: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The student's maps on the grid of the targets, and its means."""
    with torch.autocast("cpu", torch.bfloat16):
        maps, whole = student(crops)
    return resize(maps.float(), (targets.shape[-2], targets.shape[-1])), whole.float()


if __name__ == "__main__":
    main()
