"""How good class activation maps get by what guides them: the oracle experiments of CoSA (ECCV 2024, figure 1).

Trains ``cosa`` with its term s2c towards four guides, everything else alike:

    truth   the true masks: an upper bound, not weak supervision
    spl     the assignment network's segmentation, as ``cosa`` has it
    none    nothing: no s2c
    noise   a class drawn anew for each position, among the background and the image's tags

and scores CAMs (given tags) and the classifier. Contrastive separation is off in all four, so that classification and
the guide alone shape the CAMs. Only the two scripted guides are classes of this file; no method of the package sees
masks. Where the truth is void the guide is the segmentation. What is finished is read, what was cut off is resumed,
and a folder with runs of other settings or photos is refused.

    python benchmarks/oracle_cams.py --data photos --out runs/oracle
    python benchmarks/oracle_cams.py --data photos --out runs/oracle --guides truth none --seeds 0 1 2
    python benchmarks/oracle_cams.py --data photos --config cosa_voc --set train.steps=8000 data.train=train
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask import workflow
from tagmask.cam.maps import resize
from tagmask.config import RunConfig, load_config
from tagmask.errors import TrainingError
from tagmask.files import read_json, write_json, write_text
from tagmask.methods.cosa import CoSA, CoSAConfig, WeakView
from tagmask.registry import METHODS
from tagmask.types import IGNORE, Batch

SURE = 100.0
"""Logit of the guide's class, the others having 0: certain at any temperature that is used."""


class TruthConfig(CoSAConfig):
    """Settings of ``cosa``."""

    name: Literal["cosa_truth"] = "cosa_truth"  # type: ignore[assignment]


class NoiseConfig(CoSAConfig):
    """Settings of ``cosa``."""

    name: Literal["cosa_noise"] = "cosa_noise"  # type: ignore[assignment]


class Guided(CoSA):
    """``cosa`` whose s2c goes towards something else than the segmentation."""

    def guide(self, batch: Batch, logits: Tensor) -> Tensor:
        """Logits (B,C+1,h,w) that s2c takes instead of those of the segmentation (B,C+1,·,·)."""
        raise NotImplementedError

    @torch.no_grad()
    def _weak_view(self, batch: Batch, auxiliary: bool, segments: bool) -> WeakView:
        weak = super()._weak_view(batch, auxiliary, segments)
        return weak if weak.logits is None else weak._replace(logits=self.guide(batch, weak.logits))


@METHODS.register("cosa_truth")
class GuidedByTruth(Guided):
    """An oracle: CAMs learn from true masks."""

    config_class = TruthConfig
    reads_masks = True

    def guide(self, batch: Batch, logits: Tensor) -> Tensor:
        """The masks; the segmentation where they are void."""
        if batch.masks is None:
            raise TrainingError("The guide 'truth' needs masks; set data.masks to their folder.")
        truth = batch.masks.long()
        void = truth == IGNORE
        sure = SURE * F.one_hot(truth.masked_fill(void, 0), logits.shape[1]).movedim(-1, 1).float()
        return torch.where(void[:, None], resize(logits.float(), (truth.shape[-2], truth.shape[-1])), sure)


@METHODS.register("cosa_noise")
class GuidedByNoise(Guided):
    """CAMs learn from noise."""

    config_class = NoiseConfig

    def guide(self, batch: Batch, logits: Tensor) -> Tensor:
        """A class for each position; those that are not tagged are left out later, as for any logits."""
        generator = batch.generator
        drawn = torch.rand(logits.shape, generator=generator, device=generator.device).to(logits.device)
        absent = F.pad(batch.tags <= 0, (1, 0))[:, :, None, None]
        best = drawn.masked_fill(absent, -1).argmax(1)
        return SURE * F.one_hot(best, logits.shape[1]).movedim(-1, 1).float()


GUIDES: dict[str, dict[str, Any]] = {
    "truth": {"name": "cosa_truth"},
    "spl": {"name": "cosa"},
    "none": {"name": "cosa", "weight_s2c": 0.0},
    "noise": {"name": "cosa_noise"},
}


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, write oracle.json and oracle.md into --out, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="photos, tags and masks, in any layout")
    parser.add_argument("--out", type=Path, default=Path("runs/oracle"))
    parser.add_argument("--config", nargs="+", default=["msrc14", "msrc14_cosa"], help="files or packaged names")
    parser.add_argument("--guides", nargs="+", choices=list(GUIDES), default=list(GUIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--weight", type=float, default=None, help="of s2c; default: the configuration's")
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", default=[], help="settings over the configuration's")
    args = parser.parse_args(words)
    asked = [(guide, seed) for guide in args.guides for seed in args.seeds]
    # All that the table will hold, before anything is trained for hours.
    there = [(p.parent.parent.name, int(p.parent.name[4:])) for p in sorted(args.out.glob("*/seed*/result.json"))]
    runs = {
        (guide, seed): begun(configuration(guide, seed, args), args.out / guide / f"seed{seed}")
        for guide, seed in dict.fromkeys([*asked, *there])
    }
    for run in (runs[pair] for pair in asked):
        if not (run.folder.path / "result.json").is_file():
            write_json(run.folder.path / "result.json", one(run))
    table = collect(args.out)
    write_json(args.out / "oracle.json", table)
    write_text(args.out / "oracle.md", markdown(table))
    print(markdown(table))


def configuration(guide: str, seed: int, args: argparse.Namespace) -> RunConfig:
    """What a guide is trained with."""
    # The configuration's own section under another name: a name that comes over it would drop it.
    method = {**load_config(*args.config).method.model_dump(mode="json"), "weight_csc": 0.0, **GUIDES[guide]}
    if args.weight is not None and guide != "none":
        method["weight_s2c"] = args.weight
    values = {"data": {"root": str(args.data)}, "seed": seed, "method": method}
    return load_config(*args.config, values, overrides=args.set)


def begun(config: RunConfig, folder: Path) -> workflow.Run:
    """The run to begin or go on with. Raises ConfigError, DataError where the folder holds another's run."""
    run = workflow.Run(folder, config)
    if run.begun:
        run.config = workflow.resumed(run.folder, [], config.model_dump(mode="json"), [])
        run.collection  # noqa: B018 (opened now, since other photos are refused)
    return run


def one(run: workflow.Run) -> dict[str, Any]:
    """Train and score; a run that was cut off goes on."""
    workflow.train(run, resume=True)
    scores = [s for split in ("val", "train") for s in workflow.evaluate(run, split, ["cam"])]
    found = {(s["name"], s["stamp"]["split"]): s for s in scores}
    fixed, best = found["cam", "train"], found["cam (val threshold)", "train"]
    return {
        "cam": fixed["miou"],
        "cam_val_threshold": best["miou"],
        "cam_val": found["cam", "val"]["miou"],
        "peak_val": found["cam", "val"]["curve"]["peak"],
        "map_val": run.folder.metrics()["classification"]["val"]["map"],
        "threshold": fixed["stamp"]["threshold"],
        "stamp": fixed["stamp"],
    }


def collect(out: Path) -> list[dict[str, Any]]:
    """Finished results by guide, with means over seeds."""
    rows = []
    for guide in GUIDES:
        results = {p.parent.name: read_json(p) for p in sorted((out / guide).glob("seed*/result.json"))}
        if results:
            keys = ("cam", "cam_val_threshold", "cam_val", "map_val")
            means = {key: mean(r[key] for r in results.values()) for key in keys}
            rows.append({"guide": guide, "seeds": results, **means})
    return rows


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """A table in per cent."""
    titles = ["guide", "CAM, train, fixed threshold", "CAM, train, val threshold"]
    titles += ["CAM, val, fixed", "mAP, val", "seeds"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in table:
        cells = [f"{100 * row[key]:.1f}" for key in ("cam", "cam_val_threshold", "cam_val", "map_val")]
        lines.append(f"| {row['guide']} | {' | '.join(cells)} | {len(row['seeds'])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
