"""Time and memory of the dense operators beside their straightforward forms, in one run.

    python benchmarks/ops.py                          # all cases, a few minutes
    python benchmarks/ops.py --cases step --operators par --json ops.json

The straightforward form of a refinement is written as the operator is usually described: a loop over images and
over thresholds, the neighbours stacked by one-hot dilated convolutions, the weights computed anew for each threshold.
Each measurement runs in its own process, so that its peak memory is its own: on a CPU the growth of the process's
largest resident set over what it was with the inputs made, on a GPU the growth of the largest allocation.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tagmask.refine import PAMR, PAR, VARM

OPERATORS: dict[str, Callable[[], torch.nn.Module]] = {
    "par": PAR,
    "pamr": PAMR,
    "varm": VARM,
    "varm-release": lambda: VARM(variant="release"),
}
CASES = {  # images, maps of one threshold, thresholds, height, width
    "small": (16, 3, 2, 112, 112),
    "photo": (1, 15, 1, 213, 320),
    "step": (4, 3, 2, 256, 256),
    "label": (1, 21, 1, 512, 512),
}
DILATIONS = (1, 2, 4, 8, 12, 24)


def stack(x: Tensor, centre: bool = False) -> Tensor:
    """(1,C,H,W) → (1,C,48,H,W), or 54 with the centre of each window, by convolution with one-hot 3×3 kernels."""
    places = [i for i in range(9) if centre or i != 4]
    kernels = torch.eye(9, device=x.device)[places].view(-1, 1, 3, 3)
    parts = []
    for d in DILATIONS:
        padded = F.pad(x, (d, d, d, d), mode="replicate").transpose(0, 1)
        parts.append(F.conv2d(padded, kernels, dilation=d))
    return torch.cat(parts, 1)[None]


def plain_weights(operator: str, image: Tensor) -> Tensor:
    """(1,3,H,W) → (1,48,H,W), by the equations, all neighbours at once."""
    around, own = stack(image), image[:, :, None]
    if operator == "pamr":
        std = stack(image, centre=True).std(2, keepdim=True)
        return torch.softmax(-((around - own).abs() / (1e-8 + 0.1 * std)).mean(1), 1)
    std = around.std(2, keepdim=True) + 1e-8
    if operator == "par":
        steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
        distance = torch.tensor([d * (a * a + b * b) ** 0.5 for d in DILATIONS for a, b in steps], device=image.device)
        position = torch.softmax(-((distance / (distance.std() + 1e-8) / 0.3) ** 2), 0)
        colour = -(((around - own).abs() / std / 0.3) ** 2).mean(1)
        return torch.softmax(colour, 1) + 0.01 * position[None, :, None, None]
    if operator == "varm":
        beside = torch.cat([around[..., :1], around[..., :-1]], -1)
    else:
        beside = torch.cat([around[..., 1:], around[..., -1:]], -1)
    below = torch.cat([around[..., 1:, :], around[..., -1:, :]], -2)
    variation = ((beside - around) ** 2 + (below - around) ** 2).mean(1)
    colour = -((4 * (around - own).abs()) ** 2 / std**2).mean(1)
    return torch.softmax(colour, 1) - 0.01 * torch.softmax(variation, 1)


@torch.no_grad()
def plain(operator: str, images: Tensor, maps: Tensor, thresholds: int) -> Tensor:
    """The straightforward form: images one by one, thresholds one by one."""
    results = []
    for image, scores in zip(images, maps):
        parts = []
        for part in scores[None].chunk(thresholds, 1):
            weights = plain_weights(operator, image[None])
            for _ in range(10):
                part = (stack(part) * weights[:, None]).sum(2)
            parts.append(part)
        results.append(torch.cat(parts, 1))
    return torch.cat(results)


def form(name: str, operator: str, thresholds: int) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "ours":
        return OPERATORS[operator]()
    return lambda images, maps: plain(operator, images, maps, thresholds)


def inputs(count: int, maps: int, height: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Smooth colours with noise, so that standard deviations are those of photos; maps that sum to 1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    images = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    images = (images + 0.05 * torch.rand(images.shape, generator=generator)).clamp(0, 1)
    return images.to(device), torch.rand(count, maps, height, width, generator=generator).softmax(1).to(device)


def measure(name: str, operator: str, case: str, device: str, repeats: int, budget: float) -> dict:
    """Seconds (median) and peak extra MB of one form, in this process. Ends early when ``budget`` seconds are spent."""
    count, maps, thresholds, height, width = CASES[case]
    run = form(name, operator, thresholds)
    run(*inputs(1, thresholds, 32, 32, device))  # threads and kernels are loaded before anything is measured
    images, scores = inputs(count, maps * thresholds, height, width, device)
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / 2**20 if cuda else resident_peak()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < budget:
        start = time.perf_counter()
        run(images, scores)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_peak()
    return {"seconds": statistics.median(seconds), "runs": len(seconds), "peak_mb": after - before}


def resident_peak() -> float:
    """MB; Linux counts in kB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def in_own_process(name: str, operator: str, case: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--one", name, "--operators", operator, "--cases", case]
    command += ["--device", args.device, "--threads", str(args.threads)]
    command += ["--repeats", str(args.repeats), "--budget", str(args.budget)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=list(OPERATORS))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each form; the median is shown")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds after which a form is run no more")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--one", choices=["ours", "plain"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        row = measure(args.one, args.operators[0], args.cases[0], args.device, args.repeats, args.budget)
        print(json.dumps(row))
        return

    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {platform.processor()}")
    print(
        f"{'operator':<14}{'case':<8}{'shape':<20}{'plain s':>9}{'ours s':>9}{'ratio':>7}{'plain MB':>10}{'ours MB':>9}"
    )
    rows = []
    for operator in args.operators:
        images, scores = inputs(2, 4, 48, 40, args.device)
        difference = (OPERATORS[operator]()(images, scores) - plain(operator, images, scores, 2)).abs().max().item()
        for case in args.cases:
            count, maps, thresholds, height, width = CASES[case]
            row = {form: in_own_process(form, operator, case, args) for form in ("plain", "ours")}
            slow, fast = row["plain"], row["ours"]
            shape = f"{count}x{maps}x{thresholds} {height}x{width}"
            print(
                f"{operator:<14}{case:<8}{shape:<20}{slow['seconds']:>9.3f}{fast['seconds']:>9.3f}"
                f"{slow['seconds'] / fast['seconds']:>7.1f}{slow['peak_mb']:>10.0f}{fast['peak_mb']:>9.0f}",
                flush=True,
            )
            rows.append({"operator": operator, "case": case, "shape": CASES[case], "difference": difference, **row})
        print(f"{operator}: largest difference between the two forms {difference:.1e}")
    if args.json:
        environment = {"torch": torch.__version__, "device": args.device, "threads": args.threads}
        args.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
