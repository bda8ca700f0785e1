"""Weights for a small vision transformer where none are at hand: it learns a pretrained CNN's feature maps.

Neither tags nor masks are used, only photos. Every photo's map of the teacher's last features is computed once at each
of a few sizes, reduced to its principal components and kept; the student then sees random crops, flipped and with other
colours, and predicts from each patch's token the map there, from its class token the crop's mean. So both say something
about the picture, which an untrained transformer's do not. It is a stand-in for ImageNet weights and far from as good:
the printed share of the teacher's variance, on every tenth photo, which is not learnt from, says how far.

    python benchmarks/distil_vit.py --data photos --split train --out vit.safetensors
    tagmask reproduce msrc14/crt_loops --data photos encoder.name=deit_tiny_patch16_224 encoder.weights=vit.safetensors

What was cut off goes on from ``--out``'s .part file; with other settings that is refused.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.cam.maps import resize
from tagmask.config import DataConfig, EncoderConfig
from tagmask.data import open_data, read_image
from tagmask.encoders import build_encoder

HELD_OUT = 10
"""Of so many photos one is only scored."""
SAVE_EVERY = 100
"""Steps between two saves, and between two lines of progress."""


class Student(nn.Module):
    """A transformer that predicts maps of ``channels`` from its patches and their mean from its class token."""

    def __init__(self, config: EncoderConfig, channels: int) -> None:
        super().__init__()
        self.encoder = build_encoder(config)
        self.patches = nn.Linear(self.encoder.channels[-1], channels)
        self.whole = nn.Linear(self.encoder.channels[-1], channels)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """crops (B,3,H,W) in [0,1] to maps (B,C,h,w) and means (B,C)."""
        features = self.encoder(crops)
        assert features.class_token is not None, "the student needs a class token"
        return self.patches(features.maps[-1].movedim(1, -1)).movedim(-1, 1), self.whole(features.class_token)


def main(words: Sequence[str] | None = None) -> None:
    """Compute the teacher's maps, train the student, write its weights in timm's layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photos in any layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("--student", default="deit_tiny_patch16_224", help="a plain ViT with a class token")
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--teacher-layout", default="v1")
    parser.add_argument("--teacher-weights", default="auto")
    parser.add_argument("--components", type=int, default=256, help="of the teacher's features")
    parser.add_argument("--crop", type=int, default=224, help="pixels")
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.0, 1.3, 1.7], help="short sides, in crops")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    photos = [read_image(item.image) for item in open_data(DataConfig(root=args.data), args.seed).split(args.split)]
    began = time.monotonic()
    torch.manual_seed(args.seed)  # a teacher may be random, too
    views = teach(photos, args)
    print(f"teacher's maps of {len(photos)} photos: {time.monotonic() - began:.0f} s", flush=True)
    held = [v for number, v in enumerate(views) if number % HELD_OUT == 0]
    learnt = [v for number, v in enumerate(views) if number % HELD_OUT]
    student = train(learnt, held, args)
    state = {k: v.contiguous() for k, v in student.encoder.model.state_dict().items()}  # type: ignore[union-attr]
    save_file(state, args.out, metadata={"format": "pt"})
    args.out.with_suffix(".part").unlink()
    print(f"{args.out}: {args.student} after {args.steps} steps")


@torch.no_grad()
def teach(photos: Sequence[Tensor], args: argparse.Namespace) -> list[list[tuple[Tensor, Tensor]]]:
    """Each photo at each size (3,H,W) uint8, with the teacher's components there (C,h,w); their variances sum to C."""
    config = EncoderConfig(name=args.teacher, layout=args.teacher_layout, weights=args.teacher_weights)
    teacher = build_encoder(config).eval()
    stride = teacher.strides[-1]
    seen: list[list[tuple[Tensor, Tensor]]] = []
    for photo in photos:
        views = []
        for size in args.sizes:
            factor = size * args.crop / min(photo.shape[1:])
            # Whole cells, so that crops that begin at a cell have its row of the map.
            side = [max(args.crop, stride * round(n * factor / stride)) for n in photo.shape[1:]]
            small = resize(photo[None].float(), (side[0], side[1])).round().clamp(0, 255)
            with torch.autocast("cpu", torch.bfloat16):
                maps = teacher(small / 255).maps[-1][0]
            views.append((small[0].byte(), maps.half()))
        seen.append(views)
    mean, axes = components([maps.flatten(1).T for views in seen for _, maps in views], args.components)

    def reduced(maps: Tensor) -> Tensor:
        return torch.einsum("chw,cd->dhw", maps.float() - mean[:, None, None], axes).half()

    return [[(photo, reduced(maps)) for photo, maps in views] for views in seen]


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


def train(
    learnt: Sequence[Sequence[tuple[Tensor, Tensor]]],
    held: Sequence[Sequence[tuple[Tensor, Tensor]]],
    args: argparse.Namespace,
) -> Student:
    """The student after ``args.steps`` steps of AdamW with a warm-up and a cosine."""
    torch.manual_seed(args.seed)
    student = Student(EncoderConfig(name=args.student, weights="none"), args.components).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.05)
    rise = max(1, args.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / rise) * (1 + math.cos(math.pi * s / args.steps)) / 2
    )
    part = args.out.with_suffix(".part")
    settings = {k: str(v) for k, v in vars(args).items() if k != "out"}
    begin = 0
    if part.is_file():
        saved = torch.load(part, weights_only=True)
        if saved["settings"] != settings:
            raise SystemExit(f"{part}: begun with other settings; remove it, or give another --out.")
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        begin = saved["step"]
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
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(
                {**state, "schedule": schedule.state_dict(), "step": step + 1, "settings": settings},
                part.with_suffix(".new"),
            )
            part.with_suffix(".new").replace(part)
    return student


def draw(
    views: Sequence[Sequence[tuple[Tensor, Tensor]]], count: int, crop: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
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
def explained(student: Student, views: Sequence[Sequence[tuple[Tensor, Tensor]]], args: argparse.Namespace) -> float:
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
