"""Verbs that two processes do together: masks byte for byte and scores as those of one, no photo done twice."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tagmask.cli.common import screen
from tagmask.config import load_config
from tagmask.errors import DataError, Helped
from tagmask.files import read_json
from tagmask.label import LabelWriter
from tagmask.label.share import Blocks, led
from tagmask.workflow import Run, check, evaluate, label, labels_of, predict, run
from tests.workflow.conftest import BASE, STAGES, made

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter]:
    """Calls a verb in two processes at once. With its first block each waits until the other has one, too. Returns how
    often each block of each pass was taken.

    killed: the process that ends itself with its third mask.
    """
    log, barrier, dies, written = tmp_path / "log", FORK.Barrier(2), FORK.Value("c", b"-"), []
    free, add = Blocks.free, LabelWriter.add
    parent = os.getpid()

    def taken(blocks: Blocks) -> Iterator[Any]:
        for number, items in free(blocks):
            with log.open("a") as file:
                file.write(f"{blocks.folder.name if blocks.folder else ''}/{number}\n")
            if os.getpid() != parent and not written:
                written.append("begun")
                barrier.wait(300)
            yield number, items

    def added(writer: LabelWriter, item: Any, look: Any) -> None:
        if FORK.current_process().name.encode() == dies.value and len(written) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        add(writer, item, look)
        written.append(item.id)

    monkeypatch.setattr(Blocks, "free", taken)
    monkeypatch.setattr(LabelWriter, "add", added)

    def call(verb: Callable[[], Any], ends: Any) -> None:
        try:
            verb()
            ends.put("led")
        except Helped:
            ends.put("helped")

    def together(verb: Callable[[], Any], killed: str = "") -> Counter:
        dies.value = (killed or "-").encode()
        written.clear()
        log.write_text("")
        ends = FORK.Queue()
        processes = [FORK.Process(target=call, args=(verb, ends), name=name) for name in "ab"]
        for process in processes:
            process.start()
        found = sorted(ends.get(timeout=500) for _ in range(2 - len(killed)))
        for process in processes:
            process.join(500)
        assert found == (["led"] if killed else ["helped", "led"])
        return Counter(log.read_text().split())

    return together


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def scores(run: Path) -> Any:
    """metrics.json without times."""
    text = (run / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, object_hook=lambda record: {k: v for k, v in record.items() if k != "minutes"})


def test_label_evaluate_and_check_are_shared(both: Callable[..., Counter], classifier: Path, tmp_path: Path) -> None:
    one, two = (Path(shutil.copytree(classifier, tmp_path / name)) for name in ("one", "two"))
    assert label(one, "all").written == 8 and len(evaluate(one, "all", ["cam", "refined", "masks"])) == 3
    for verb in (lambda: label(two, "all"), lambda: evaluate(two, "all", ["cam", "refined", "masks"])):
        assert list(both(verb).values()) == [1, 1]
    assert files(two / "masks") == files(one / "masks") and scores(two) == scores(one)
    assert not [path for path in two.rglob("*") if path.name.startswith(".")]
    config = Run(one).config
    assert list(both(lambda: check(config, tmp_path / "two.json")).values()) == [1, 1]
    check(config, tmp_path / "one.json")
    assert read_json(tmp_path / "two.json") == read_json(tmp_path / "one.json")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("killed", ["a", "b"])
def test_the_photos_of_a_killed_process_are_done_by_the_other(
    killed: str, both: Callable[..., Counter], classifier: Path, tmp_path: Path
) -> None:
    one, two = (Path(shutil.copytree(classifier, tmp_path / name)) for name in ("one", "two"))
    label(one, "all")
    both(lambda: label(two, "all", overwrite=True), killed)
    assert files(two / "masks") == files(one / "masks")


@pytest.mark.slow
def test_a_staged_run_and_predictions_are_shared(both: Callable[..., Counter], scenes: Path, tmp_path: Path) -> None:
    """Fingerprint, seeds, walks, masks, scores and estimates of quality."""
    lists = {"train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    values = load_config(BASE, {"data": {"root": str(scenes), **lists}, "stages": STAGES}).model_dump(mode="json")
    values["plan"] = False
    one, two = tmp_path / "one", tmp_path / "two"
    run([values], {}, [], one)
    done = both(lambda: run([values], {}, [], two))
    assert set(done.values()) == {1} and len(done) > 6
    assert made(two) == made(one) and scores(two) == scores(one)
    assert scores(two / "segmenter") == scores(one / "segmenter")
    assert (two / "quality.csv").read_bytes() == (one / "quality.csv").read_bytes()
    photos = [str(scenes / "images")]
    predict(one, photos, tmp_path / "out one")
    assert set(both(lambda: predict(two, photos, tmp_path / "out two")).values()) == {1}
    assert files(tmp_path / "out two") == files(tmp_path / "out one")


def test_masks_that_another_process_made_are_learned_from(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two segmenters that are trained on one run's masks at once ask for them at once."""
    taught = Path(shutil.copytree(classifier, tmp_path / "run"))
    run = Run(taught)
    shutil.rmtree(run.folder.masks, ignore_errors=True)

    def other(*_: Any, **__: Any) -> None:
        label(taught, "train")
        raise Helped("helped")

    module = importlib.import_module("tagmask.workflow.label")
    monkeypatch.setattr(module, "label", other)
    assert labels_of(taught)["data"]["train_masks"] == str(run.folder.masks)
    shutil.rmtree(run.folder.masks)
    monkeypatch.setattr(module, "label", raises(Helped("helped")))
    with pytest.raises(DataError, match="try again"):
        labels_of(taught)


def raises(error: Exception) -> Callable[..., None]:
    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


def test_who_leads_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tagmask.lock._leads", False)
    monkeypatch.setenv("RANK", "1")
    shown = screen()
    shown.print("nothing")
    led(tmp_path / "out", {"verb": "any"}, lambda over: shown.print("the result"))
    assert capsys.readouterr().out == "the result\n"
