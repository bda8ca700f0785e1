"""Every verb is killed at a random moment and made again: the outcome is that of a verb that nothing stopped."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tagmask.convert import coco_masks
from tagmask.data import read_mask
from tagmask.files import read_json
from tagmask.reproduce import reproduce
from tagmask.workflow import evaluate, label, predict, report, run, train
from tests.faults.campaign import times, told
from tests.faults.damage import finish, go_on, log_of, scenes, tiny
from tests.faults.test_coco_files import put
from tests.faults.test_coco_files import scenes as coco_scenes

TABLE = """
title: one row
columns: [{title: val, split: val, score: segmenter}]
seeds: [0]
rows: [{name: row}]
"""


class Verb(NamedTuple):
    """A verb on a folder: what is made first, what is killed, how it is made again, and what counts of its outcome."""

    prepare: Callable[[Path], Any]
    first: Callable[[Path], Any]
    again: Callable[[Path], Any]
    outcome: Callable[[Path], Any]


def masks_in(folder: Path) -> dict[str, bytes]:
    return {p.name: read_mask(p, 254).numpy().tobytes() for p in sorted(folder.rglob("*.png"))}


def learned(out: Path) -> Any:
    return read_json(out / "model" / "classes.json")["digest"], log_of(out)


def scores_in(path: Path) -> Any:
    return [(score["name"], score["stamp"]["split"], score["miou"]) for score in read_json(path)["scores"]]


@pytest.fixture(scope="module")
def verbs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verb]:
    home = tmp_path_factory.mktemp("kills")
    data = scenes(home / "scenes")
    config = tiny(data, plan=False)
    whole = finish(config, home / "whole")
    (home / "one.yaml").write_text(TABLE)
    settings = config.model_dump(mode="json", exclude_none=True)

    def without(*names: str) -> Callable[[Path], None]:
        def prepare(out: Path) -> None:
            shutil.copytree(whole, out)
            for name in names:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()

        return prepare

    def nothing(out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)

    def all_of_it(out: Path) -> None:
        run([settings], {}, [], out, resume=True)

    def table(out: Path) -> None:
        path = home / "one.yaml"
        sections = [f"{key}={value}" for key, value in words(settings)]
        reproduce(str(path), data, out, overrides=sections)

    def same(verb: Callable[[Path], Any]) -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
        return verb, verb

    def train_again(out: Path) -> None:
        go_on(out) if (out / "config.yaml").is_file() else train(config, out)

    def convert(out: Path) -> None:
        coco_masks(next((out / "annotations").iterdir()), workers=1)

    return {
        "train": Verb(nothing, lambda out: train(config, out), train_again, learned),
        "run": Verb(nothing, *same(all_of_it), lambda out: (learned(out), masks_in(out / "masks"))),
        "label": Verb(without("masks"), *same(label), lambda out: masks_in(out / "masks")),
        "predict": Verb(
            without(),
            *same(lambda out: predict(out, [data / "images"], out / "new")),
            lambda out: masks_in(out / "new"),
        ),
        "evaluate": Verb(
            without("metrics.json"),
            *same(lambda out: evaluate(out, "val")),
            lambda out: scores_in(out / "metrics.json"),
        ),
        "report": Verb(
            without("report.html"),
            *same(lambda out: report(out, photos=1)),
            lambda out: (out / "report.html").read_text().rstrip().endswith("</html>"),
        ),
        "reproduce": Verb(nothing, *same(table), lambda out: scores_in(out / "one" / "row" / "seed0" / "result.json")),
        "convert": Verb(lambda out: put(out, coco_scenes()), *same(convert), masks_in),
    }


def words(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Settings by dotted key, without the data's place and the stages."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += words(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("seed", "data.root"):
            found.append((f"{prefix}{key}", value))
    return found


def killed(act: Callable[[], Any], after: float) -> bool:
    """Whether ``act``, in a process of its own, was still at work when it was killed after some seconds."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            act()
        finally:
            os._exit(0)
    began = time.monotonic()
    while time.monotonic() < began + after:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_verb_that_was_killed_is_made_again(verbs: dict[str, Verb], tmp_path: Path) -> None:
    draw, counts = random.Random(27), Counter[str]()
    names = list(verbs)
    expected: dict[str, tuple[float, Any]] = {}
    for number in range(times(len(names))):
        name = names[number % len(names)]
        verb = verbs[name]
        if name not in expected:
            out = tmp_path / f"whole_{name}"
            verb.prepare(out)
            began = time.monotonic()
            verb.first(out)
            expected[name] = time.monotonic() - began, verb.outcome(out)
        seconds, outcome = expected[name]
        out = tmp_path / f"{name}{number}"
        verb.prepare(out)
        cut = killed(lambda verb=verb, out=out: verb.first(out), draw.random() * seconds)  # type: ignore[misc]
        verb.again(out)
        assert verb.outcome(out) == outcome, name
        counts[f"{name} {'killed' if cut else 'ended before'}"] += 1
        shutil.rmtree(out)
    told(counts)
