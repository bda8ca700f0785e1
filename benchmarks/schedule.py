"""Steps a second, peak memory and hours of whole training configurations, measured in the training loop itself.

Photos of VOC's size (500 x 375 JPEG, drawn: smooth colours and noise) with tags of 20 classes; random weights, which
cost what pretrained ones do. Each configuration is trained for a few steps of classification and as many with every
term on, with its own crops, batch, precision, workers and optimiser; the first steps of each phase are left out. The
hours are projected: its own number of steps, each phase counted with its length, without scoring. Where further terms
begin later than the first one, they come out a little high. Where much of the time is spent waiting, photos are read
too slowly: raise train.workers.

    python benchmarks/schedule.py tscd_voc cosa_voc                     # on a GPU where there is one
    python benchmarks/schedule.py tscd_voc --set train.batch_size=4 train.accumulate=2
    python benchmarks/schedule.py eca_voc --set method.guide.view=photo method.guide.cache=FOLDER   # what it saves
    python benchmarks/schedule.py rcm_mam_voc rcm_mam_voc:affinity rcm_mam_voc:segmenter   # networks of its stages

What learns from masks gets drawn ones, 4 x 4 blocks of one label. The learning rate is next to nothing: random weights
of deep networks diverge at the configurations' own. Memory is that of the GPU, or on a CPU the largest
resident memory of the process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tagmask import workflow
from tagmask.config import RunConfig, load_config
from tagmask.data import write_mask
from tagmask.registry import METHODS
from tagmask.training import RunFolder, readers
from tagmask.workflow.opened import default_device
from tagmask.workflow.stages import learns_from, network_config
from tagmask.workflow.timing import bare

CLASSES = 20
GIB = 2**30


def main(words: Sequence[str] | None = None) -> None:
    """Measure each configuration in a process of its own, print a table, save JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="packaged names or files, or NAME:STAGE; one table row each")
    parser.add_argument("--steps", type=int, default=40, help="measured steps of each phase")
    parser.add_argument("--skip", type=int, default=10, help="steps before them")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=[375, 500], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings over the configurations'")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the photos of the process that measures one configuration
    args = parser.parse_args(words)
    if args.one:
        print(json.dumps(measure(args.configs[0], Path(args.one), args)))
        return
    rows = []
    titles = ["configuration", "machine", "precision", "batch, crop", "readers", "classification", "whole", "waiting"]
    titles += ["memory, GiB", "steps", "hours"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    with tempfile.TemporaryDirectory() as home:
        photos = write_photos(Path(home) / "photos", args.images, *args.size)
        for name in args.configs:
            shared = ["--steps", str(args.steps), "--skip", str(args.skip), "--one", str(photos)]
            words = [name, *shared, *(["--set", *args.set] if args.set else [])]
            done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"{name}: could not be measured, see above.")
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            first = f"{row['warmup_rate']:.2f} steps/s" if row["warmup_rate"] else "–"
            size = f"{row['memory'] / GIB:.1f}"
            print(
                f"| {name} | {row['device']} | {row['precision']} | {row['batch']}, {row['crop']} | "
                f"{row['workers']} | {first} | {row['rate']:.2f} steps/s | {row['waiting']:.0%} | {size} "
                f"| {row['steps']:,} | {row['hours']:.1f} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(name: str, photos: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Rates, memory and projected hours of one configuration."""
    # Its own lists and classes are of the data set that it is for; these are given by the photos.
    data = {"source": "table", "root": str(photos), "classes": [named(k) for k in range(CLASSES)]}
    data |= dict.fromkeys(("train", "val", "test"))
    whole, _, stage = name.partition(":")
    config = load_config(whole, {"data": data}, overrides=[] if stage else args.set)
    if stage:
        if stage not in learns_from(config):
            raise SystemExit(f"'{whole}' has no stage '{stage}' that trains a network.")
        own = network_config(config, stage, RunFolder(photos))
        config = load_config(own.model_dump(mode="json"), overrides=args.set)
    if METHODS.get(config.method.name).reads_masks or stage:
        config.data.train_masks = photos / "drawn"
    config = bare(config)
    cuda = config.train.accelerator != "cpu" and torch.cuda.is_available()
    length = int(getattr(config.method, "warmup", 0))
    slow, fast, waiting = rates(config, args, warm=length > 0)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = (length / slow if slow else 0.0) + (config.train.steps - length) / fast
    return {
        "configuration": name,
        "set": args.set,
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "precision": config.train.precision,
        "batch": config.train.batch_size,
        "crop": config.views.crop,
        "workers": readers(config.train, default_device(config)),
        "warmup_rate": slow,
        "rate": fast,
        "waiting": waiting,
        "memory": peak,
        "steps": config.train.steps,
        "hours": seconds / 3600,
    }


def rates(config: RunConfig, args: argparse.Namespace, warm: bool) -> tuple[float | None, float, float]:
    """Steps a second of the training loop, waiting for photos included: classification, if any, and all terms; and
    the share of the latter's time that it waited."""
    phase = args.skip + args.steps
    own = config.model_copy(deep=True)
    begins = [key for key in own.method.phases() if isinstance(getattr(own.method, key), int)]
    own.method = own.method.model_copy(update=dict.fromkeys(begins, phase if warm else 0))
    steps = 2 * phase if warm else phase
    short = {"steps": steps, "warmup": 0, "log_every": 1, "evaluate_every": 0, "checkpoint_every": steps, "lr": 1e-12}
    own.train = own.train.model_copy(update=short)
    with tempfile.TemporaryDirectory() as home:
        run = workflow.Run(home, own)
        workflow.train(run)
        rows = {row["step"]: row for row in run.folder.log() if "seconds" in row}
    spent = {step: row["seconds"] for step, row in rows.items()}
    waited = {step: row["seconds"] * row["data_share"] for step, row in rows.items()}
    slow = args.steps / (spent[phase] - spent[args.skip]) if warm else None
    whole = spent[steps] - spent[steps - args.steps]
    return slow, args.steps / whole, (waited[steps] - waited[steps - args.steps]) / whole


def named(tag: int) -> str:
    return f"class{tag:02d}"


def write_photos(folder: Path, images: int, height: int, width: int) -> Path:
    """JPEG photos that compress about as photos do, tags.csv, one or two classes each, and masks in drawn/."""
    (folder / "drawn").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = ["image,tags"]
    for i in range(images):
        colours = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + random.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:04d}.jpg", quality=90)
        tags = {i % CLASSES, int(random.integers(CLASSES))}
        rows.append(f"{i:04d}.jpg,{';'.join(named(tag) for tag in sorted(tags))}")
        blocks = random.choice([0, *(tag + 1 for tag in tags)], (4, 4)).astype(np.uint8)
        labels = blocks.repeat(height // 4 + 1, 0).repeat(width // 4 + 1, 1)[:height, :width]
        write_mask(folder / "drawn" / f"{i:04d}.png", labels)
    (folder / "tags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
