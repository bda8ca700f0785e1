"""Runs to damage, ways to damage them, and the verbs that look at them then."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tagmask
from tagmask.config import RunConfig, load_config
from tagmask.data import read_mask, write_demo
from tagmask.errors import TagmaskError
from tagmask.files import read_json
from tagmask.label import Labelled
from tagmask.training import RunFolder
from tagmask.workflow import evaluate, label, predict, report, resumed, train

STEPS = 6
TINY: dict[str, Any] = {
    "encoder": {"name": "test_resnet", "weights": "none"},
    "views": {"crop": 32},
    "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 8}},
    "train": {
        "steps": STEPS, "batch_size": 2, "workers": 0, "warmup": 0, "accelerator": "cpu", "checkpoint_every": 2,
        "keep": 2, "log_every": 1, "evaluate_every": 2, "channels_last": False,
    },
    "label": {"cam_scales": [1.0], "source": "segmenter", "refine_masks": "none"},
    "evaluate": {"bootstrap": 0, "boundary": 0, "bins": 5},
}  # fmt: skip


def scenes(folder: Path) -> Path:
    """Eight small drawn photos with tags and true masks."""
    write_demo(folder, images=8, size=(32, 40), seed=3)
    return folder


def tiny(data: Path, **sections: Any) -> RunConfig:
    """A configuration that trains in a second."""
    own = {"root": str(data), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    return load_config(TINY, {"data": own}, sections)


def finish(config: RunConfig, out: Path) -> Path:
    """A run with all that the verbs make."""
    train(config, out)
    label(out)
    evaluate(out, "val")
    report(out, photos=1)
    return out


def go_on(out: Path, *overrides: str) -> None:
    """``tagmask train --resume -o out``."""
    train(resumed(RunFolder(out), [], {}, list(overrides)), out, resume=True)


def log_of(run: Path) -> list[dict[str, Any]]:
    """The log without times."""
    timed = ("seconds", "images_per_second", "data_share")
    return [{key: value for key, value in record.items() if key not in timed} for record in RunFolder(run).log()]


def results(run: Path) -> dict[str, Any]:
    """What a run has found: digest of the weights, labels of the masks, log."""
    found: dict[str, Any] = {"digest": read_json(run / "model" / "classes.json")["digest"], "log": log_of(run)}
    return found | {path.name: read_mask(path, 254).numpy().tobytes() for path in (run / "masks").glob("*.png")}


def truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size or 1)])


def scramble(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 3, 100))):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)


def noise(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(5000))


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def swap(path: Path, draw: random.Random) -> None:
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p != path)
    if others:
        shutil.copyfile(draw.choice(others), path)


def folder_instead(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    truncate, scramble, noise, empty, delete, swap, folder_instead,
)  # fmt: skip


def verbs(run: Path, photo: Path) -> dict[str, Callable[[], Any]]:
    """What is tried on a damaged run, in this order."""
    return {
        "train": lambda: go_on(run),
        "label": lambda: label(run),
        "evaluate": lambda: evaluate(run, "val"),
        "report": lambda: report(run, photos=1),
        "predict": lambda: predict(run, [photo], run.parent / "predicted"),
        "load": lambda: tagmask.load(run, "cpu").predict(photo),
    }


def outcome(verb: Callable[[], Any]) -> str:
    """'done', or what is said: the error's text, or files left out; another error than tagmask's own passes."""
    try:
        made = verb()
        if isinstance(made, Labelled) and made.failed:
            return str(made.failed)
    except (TagmaskError, OSError) as error:
        text = str(error)
        assert text and "\n\n" not in text
        return text
    return "done"


def same(found: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether a run has what an undamaged one has. Lines of the log may be lost with the file that held them."""
    lines = [line for line in found["log"] if line not in whole["log"]]
    return not lines and {k: v for k, v in found.items() if k != "log"} == {
        k: v for k, v in whole.items() if k != "log"
    }
