"""Disk and memory of every stage of a staged run, at two numbers of photos, and the law by which they grow.

Drawn scenes and an untrained network: what a stage writes and holds depends on the photos' size and number and on the
networks, not on how good they are. (Labels of an untrained network are ragged, so their files are rather large.) Every
stage runs in a process of its own, whose largest resident memory is taken. Disk is what lies in its folder afterwards.
Memory that grows with the number of photos is the list of photos and their fingerprint; it is measured by itself, since
in a process it drowns in the noise of the allocator.

    python benchmarks/stages.py                                  # 100 and 200 photos of 250 x 188
    python benchmarks/stages.py --images 200 400 --size 375 500 --encoder resnet50
    python benchmarks/stages.py --passes rcm_mam_voc crt_voc --size 375 500      # memory of one photo's labels instead

The projection: a label map is an empty one of the photos' size, and what its labels take over that, linear in pixels
(outlines, of which that is made, rather grow with their root); a soft map is linear in pixels; all are linear in
photos. Networks and the memory of a stage are constant in photos.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagmask.config import RunConfig, load_config
from tagmask.data import tag_vector, write_demo, write_mask
from tagmask.data.source_demo import SHARES
from tagmask.label import Inference, Look
from tagmask.methods import build_method
from tagmask.training import RunFolder
from tagmask.workflow import Run
from tagmask.workflow.run import training_steps, work
from tagmask.workflow.stage_labels import ConfidentLabels, MakePlaces
from tagmask.workflow.stages import Stages, mask_maker, stage_configs
from tagmask.workflow.timing import bare

STAGES = ("classifier", "cams", "affinity", "masks", "segmenter")
HOME = {"classifier": "", "cams": "seeds", "affinity": "affinity", "masks": "masks", "segmenter": "segmenter"}
LABELS = ("cams", "masks")
CLASSES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[100, 200], help="training photos of the two runs")
    parser.add_argument("--size", type=int, nargs=2, default=[188, 250], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--project", type=int, default=10582, help="training photos to project to")
    parser.add_argument("--project-size", type=int, nargs=2, default=[375, 500], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--one", nargs=3, metavar=("STAGE", "SCENES", "RUN"), help=argparse.SUPPRESS)
    parser.add_argument("--passes", nargs="+", help="configurations whose stages label one photo, in place of runs")
    parser.add_argument("--one-pass", nargs=2, metavar=("CONFIG", "STAGE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_pass:
        print(json.dumps(one_pass(*args.one_pass, *args.size)))
        return
    if args.passes:
        if args.json:
            parser.error("--passes prints a table only")
        print("| configuration, stage | photo | networks are there | labelling one photo adds |\n|---|---|---|---|")
        for name in args.passes:
            for stage in LABELS:
                words = ["--size", *map(str, args.size), "--one-pass", name, stage]
                done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=False)
                if done.returncode != 0:
                    raise SystemExit(f"{name}, {stage}: could not be measured, see above.")
                found = json.loads(done.stdout.splitlines()[-1])
                cells = [f"{name}, {stage}", f"{args.size[1]} x {args.size[0]}", mega(found["there"], 0)]
                print(f"| {' | '.join([*cells, mega(found['added'], 0)])} |", flush=True)
        return
    if args.one:
        print(json.dumps(one_stage(*args.one, args.encoder)))
        return
    runs = []
    for images in args.images:
        with tempfile.TemporaryDirectory() as home:
            scenes = write_demo(Path(home) / "scenes", round(images / SHARES["train"]), tuple(args.size))
            command = [sys.executable, __file__, "--encoder", args.encoder, "--one"]
            found = {}
            for stage in STAGES:
                done = subprocess.run(
                    [*command, stage, str(scenes), str(Path(home) / "run")], stdout=subprocess.PIPE, check=True
                )
                found[stage] = json.loads(done.stdout.splitlines()[-1])
                print(f"{images} photos, {stage}: {found[stage]}", file=sys.stderr)
            runs.append(found)
    rows = law(runs, args.images, args.size, args.project, args.project_size)
    print(table(rows, args.images, args.size, args.project, args.project_size))
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args) | {"json": None}, "rows": rows}, indent=1) + "\n")


def configure(scenes: str, encoder: str, last: str) -> RunConfig:
    """A tiny staged run up to stage ``last``, with soft maps."""
    stages: dict[str, Any] = {
        "classifier": {},
        "cams": {"high": 0.6, "low": 0.3, "soft": True},
        "affinity": {},
        "masks": {"walk": {"walk_steps": 16}, "soft": True},  # the walk's length costs time alone
        "segmenter": {"method": {"head_options": {"hidden": 64}}},
    }
    splits = {name: f"{name}.txt" for name in SHARES}
    return load_config(
        {
            "data": {"root": scenes, "source": "table", "masks": "masks", **splits},
            "encoder": {"name": encoder, "weights": "none"},
            "views": {"crop": 128},
            "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 64}},
            # At this rate the networks stay as they were drawn: both runs have the same, and make the same labels.
            "train": {"steps": 3, "batch_size": 4, "workers": 0, "warmup": 0, "checkpoint_every": 1, "keep": 1}
            | {"optimizer": "sgd", "lr": 1e-12},
            "label": {"cam_scales": [1.0]},
            "stages": {name: stages[name] for name in STAGES[: STAGES.index(last) + 1]},
        }
    )


def one_stage(stage: str, scenes: str, run: str, encoder: str) -> dict[str, float]:
    """Run one stage, those before it being done, and measure: bytes on disk, by kind, and of memory."""
    opening = Run(run, configure(scenes, encoder, stage))
    before = peak()
    tracemalloc.start()
    opening.begin()
    listed = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    work(opening, training_steps(opening, Stages(opening), None), "start again")
    place = Path(run) / HOME[stage]
    files = [p for p in (place.rglob("*") if stage in LABELS else own_files(place)) if p.is_file()]
    size = {kind: sum(p.stat().st_size for p in files if p.suffix == kind) for kind in (".png", ".npz")}
    whole = sum(p.stat().st_size for p in files)
    return {"disk": whole - size[".npz"], "soft": size[".npz"], "peak": peak(), "idle": before, "listed": listed}


def one_pass(name: str, stage: str, height: int, width: int) -> dict[str, int]:
    """Largest resident memory, bytes, with the networks of a stage built, and what two tags' labels of a photo add.

    The second is the growth of the largest: where building took more for a moment, that much of it is not seen.
    """
    config = bare(load_config(name))
    if config.stages is None or getattr(config.stages, stage) is None:
        raise SystemExit(f"'{name}' has no stage '{stage}'.")
    inference = Inference(build_method(config, CLASSES).eval(), config)
    photo = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    if stage == "cams":
        assert config.stages.cams is not None
        make: MakePlaces = ConfidentLabels(config.stages.cams)
    else:
        affinity = stage_configs(config, RunFolder("nowhere")).get("affinity")
        walker = None if affinity is None else build_method(bare(affinity), CLASSES).eval()
        make = mask_maker(config, inference, walker, affinity)
    there = peak()
    make(Look(inference, photo, tag_vector((0, 1), CLASSES)), torch.tensor([0, 1]))
    return {"there": there, "added": peak() - there}


def empty_label(size: list[int]) -> int:
    """Bytes of a label map (height, width) that is all background."""
    with tempfile.TemporaryDirectory() as home:
        write_mask(Path(home) / "empty.png", np.zeros(size, dtype=np.uint8))
        return (Path(home) / "empty.png").stat().st_size


def own_files(run: Path) -> list[Path]:
    """Files of a run folder, without those of the stages in it."""
    others = [run / home for home in HOME.values() if home]
    return [p for p in run.rglob("*") if not any(p.is_relative_to(other) for other in others)]


def peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def law(
    runs: list[dict[str, Any]], images: list[int], size: list[int], project: int, project_size: list[int]
) -> list[dict[str, Any]]:
    """One row a stage and kind of file: disk of both runs, bytes a photo between them, and what they come to."""
    rows = []
    scale = project_size[0] * project_size[1] / (size[0] * size[1])
    empty, empty_there = empty_label(size), empty_label(project_size)
    for stage in STAGES:
        small, large = (run[stage] for run in runs)
        for kind in ("disk", "soft") if stage in LABELS else ("disk",):
            each = (large[kind] - small[kind]) / (images[1] - images[0])
            start = large[kind] - each * images[1]
            there = each
            if stage in LABELS:
                there = each * scale if kind == "soft" else empty_there + max(0, each - empty) * scale
            listed = (large["listed"] - small["listed"]) / (images[1] - images[0])
            rows.append(
                {
                    "stage": stage + (", soft maps" if kind == "soft" else ""),
                    "disk": [small[kind], large[kind]],
                    "fixed": start,
                    "each": each,
                    "projected": start + there * project,
                    "peak": [small["peak"], large["peak"]],
                    "idle": large["idle"],
                    "listed": listed,
                    "projected_list": listed * project,
                }
            )
    return rows


def table(rows: list[dict[str, Any]], images: list[int], size: list[int], project: int, project_size: list[int]) -> str:
    """The rows as Markdown."""
    few, many = images
    lines = [
        f"Photos of {size[1]} x {size[0]}; {project} of {project_size[1]} x {project_size[0]} projected.",
        "",
        f"| stage | disk, {few} | disk, {many} | a photo | disk, {project} | peak memory, {few} | {many} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        disk = [mega(value) for value in row["disk"]]
        memory = ["", ""] if row["stage"].endswith("soft maps") else [mega(value, 0) for value in row["peak"]]
        cells = [row["stage"], *disk, f"{row['each'] / 1000:.2f} kB", mega(row["projected"], 0), *memory]
        lines.append(f"| {' | '.join(cells)} |")
    idle, listed = max(row["idle"] for row in rows), rows[0]["listed"]
    lines += [
        "",
        f"Of the memory {mega(idle, 0)} are there before a stage begins. The list of photos and its fingerprint take "
        f"{listed / 1000:.2f} kB a photo: {mega(listed * project)} for {project}.",
    ]
    return "\n".join(lines)


def mega(size: float, digits: int = 2) -> str:
    return f"{size / 1e6:,.{digits}f} MB"


if __name__ == "__main__":
    main()
