"""Run folders that were damaged, changed or are in use: a verb goes on rightly, or says what is wrong."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import tagmask
from tagmask.config import RunConfig, load_config
from tagmask.errors import ConfigError, DataError, TrainingError
from tagmask.files import csv_text, read_csv, read_json, write_text
from tagmask.label import read_missing
from tagmask.lock import alone
from tagmask.training import RunFolder
from tagmask.training.checkpoint import checkpoints
from tagmask.workflow import evaluate, label, report, resumed, train
from tests.faults.campaign import times, told
from tests.faults.damage import STEPS, WAYS, finish, go_on, outcome, results, same, scenes, tiny, verbs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def config(data: Path) -> RunConfig:
    return tiny(data)


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test changes, made under a umask of 027."""
    before = os.umask(0o027)
    try:
        return finish(config, tmp_path_factory.mktemp("runs") / "whole")
    finally:
        os.umask(before)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def cut(run: Path) -> Path:
    """A run that was killed before its model was written."""
    shutil.rmtree(run / "model")
    return run


def newest(run: Path) -> Path:
    return checkpoints(run / "checkpoints")[-1]


@pytest.mark.parametrize("content", [b"", b"\x00" * 5000, None], ids=["empty", "noise", "half"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    content: bytes | None, cut: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = newest(cut)
    path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
    go_on(cut)
    assert path.name in capsys.readouterr().err.replace("\n", "")
    assert results(cut) == results(whole)


def test_a_changed_byte_in_a_checkpoint_is_seen(cut: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(newest(cut).read_bytes())
    content[len(content) // 2] ^= 1
    newest(cut).write_bytes(content)
    go_on(cut)
    assert "checksum" in capsys.readouterr().err
    assert results(cut) == results(whole)


def test_a_checkpoint_that_would_end_the_process_is_damaged(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python hashes a key of nested tuples by recursion in C."""
    tuples = b"\x80\x02}(K\x01" + b"\x85" * 2_000_000 + b"K\x01u."
    path = newest(cut)
    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("a/data.pkl", tuples)
        parts.writestr("a/version", "3\n")
    go_on(cut)
    assert path.name in capsys.readouterr().err.replace("\n", "")


def test_without_a_sound_checkpoint_training_says_so(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in checkpoints(cut / "checkpoints"):
        path.write_bytes(b"x")
    with pytest.raises(TrainingError, match="checkpoints"):
        go_on(cut)
    shutil.rmtree(cut / "checkpoints")
    go_on(cut)
    assert "step 0" in capsys.readouterr().err


def test_checkpoints_after_the_one_that_is_gone_on_from_are_deleted(cut: Path) -> None:
    newest(cut).write_bytes(b"")
    (cut / "checkpoints" / "step_0000099.ckpt").write_bytes(b"")
    go_on(cut, "train.keep=1")
    assert [path.name for path in checkpoints(cut / "checkpoints")] == [f"step_{STEPS:07d}.ckpt"]


def test_changed_tags_or_photos_are_refused_on_a_resume(cut: Path, data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    text = (cut / "config.yaml").read_text(encoding="utf-8").replace(str(data), str(other))
    write_text(cut / "config.yaml", text)
    table = (other / "tags.csv").read_text(encoding="utf-8").splitlines()
    rows = [row.partition(",") for row in table[1:]]
    turned = [f"{one[0]},{two[2]}" for one, two in zip(rows, [*rows[1:], rows[0]], strict=True)]
    (other / "tags.csv").write_text("\n".join([table[0], *turned]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="other"):
        go_on(cut)
    (other / "tags.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    photo = sorted((other / "images").iterdir())[0]
    content = photo.read_bytes()
    photo.write_bytes(content + bytes(9))
    with pytest.raises(DataError, match="other"):
        go_on(cut)
    photo.write_bytes(content)
    go_on(cut)


def test_a_finished_run_makes_lost_weights_from_its_last_checkpoint(run: Path, whole: Path) -> None:
    (run / "model" / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=f"tagmask train --resume -o {run}"):
        label(run, out=run.parent / "elsewhere")
    go_on(run)
    assert results(run) == results(whole)
    (run / "model" / "weights.safetensors").unlink()
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match="model"):
        go_on(run)


def test_weights_that_changed_are_refused_by_name(run: Path, data: Path) -> None:
    path = run / "model" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    for place in range(len(content) - 400, len(content), 4):
        content[place] ^= 1
    path.write_bytes(content)
    photo = next((data / "images").iterdir())
    for verb in (lambda: label(run), lambda: evaluate(run, "val"), lambda: tagmask.load(run).predict(photo)):
        with pytest.raises(DataError, match=r"weights\.safetensors.*digest"):
            verb()


def test_masks_without_their_note_are_not_mixed_with_others(run: Path) -> None:
    (run / "masks" / "classes.json").unlink()
    gone = sorted((run / "masks").glob("*.png"))[0]
    gone.unlink()
    with pytest.raises(ConfigError, match="classes.json"):
        label(run, overrides=["label.source=cam"])
    done = label(run, overrides=["label.source=cam"], overwrite=True)
    assert done.skipped == 0 and read_json(run / "masks" / "classes.json")["source"] == "cam"


def test_a_log_with_damaged_lines_is_read(run: Path) -> None:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    broken = ["{}", "[1]", '{"step": 1, "losses": 3}', '{"step": 1, "losses": {"a": 1}}', "nul", lines[0][:-9], "}"]
    (run / "log.jsonl").write_bytes("\n".join([*broken, *lines]).encode() + b"\n\xff\xfe")
    assert len(RunFolder(run).log()) == len(lines)
    assert report(run, photos=1).is_file()


HOLD = """
import sys
from pathlib import Path
from tagmask.lock import alone
with alone(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def taken(run: Path) -> Iterator[Path]:
    """A run that another process works on."""
    words = [sys.executable, "-c", HOLD, str(run), "in the test"]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == "mine"
    yield run
    other.communicate()
    assert not (run / ".lock").exists() and not (run / ".lock.json").exists()


def test_a_run_is_written_by_one_process(taken: Path, config: RunConfig, data: Path) -> None:
    before = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
    photo = next((data / "images").iterdir())
    tried = verbs(taken, photo) | {"again": lambda: train(config, taken)}
    for name in ("train", "label", "evaluate", "report", "again"):
        with pytest.raises(ConfigError, match=r"'-c .*in the test'.* since \d{4}-"):
            tried[name]()
    for name in ("predict", "load"):
        assert outcome(tried[name]) == "done"
    assert label(taken, out=taken.parent / "masks").written
    assert before == {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}


def test_a_process_may_ask_again_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with alone(tmp_path / "new"), alone(tmp_path / "new"):
        assert (tmp_path / "new" / ".lock.json").is_file()
    assert not (tmp_path / "new").exists()
    monkeypatch.setenv("LOCAL_RANK", "1")
    with alone(tmp_path / "new"):
        assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="not a run"):
        label(tmp_path / "no run")
    assert not (tmp_path / "no run").exists()


def test_what_killed_processes_left_goes(cut: Path) -> None:
    left = [cut / ".0123abcd.7.part", cut / "checkpoints" / ".0123abcd.8.part"]
    for path in left:
        path.write_text("half")
    go_on(cut)
    assert not [path for path in left if path.exists()]


def test_files_have_the_permissions_that_the_umask_says(whole: Path) -> None:
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640} and len(files) > 15


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "'=1", "''+1"])
def test_no_cell_starts_a_formula(cell: str, tmp_path: Path) -> None:
    text = csv_text([[cell, "plain", "it's"]])
    write_text(tmp_path / "a.csv", text)
    assert read_csv(tmp_path / "a.csv") == [[cell, "plain", "it's"]]
    assert text.lstrip('"')[0] == "'" and "plain,it's" in text


def test_missing_classes_keep_their_names(tmp_path: Path) -> None:
    write_text(tmp_path / "missing.csv", csv_text([("image", "class"), ("=a", "@b"), ("-c", "d")]))
    assert read_missing(tmp_path) == {"=a": ["@b"], "-c": ["d"]}


def campaign(seed: int, count: int, whole: Path, data: Path, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Damage one file of a finished or killed run, and try all verbs on it. Gives what was done, and what they said.

    Where all are done, nothing may be lost: the results are those of the undamaged run.
    """
    expected, photo = results(whole), sorted((data / "images").iterdir())[0]
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        run = folder / f"{seed}_{number}" / "run"
        shutil.copytree(whole, run)
        if draw.random() < 0.5:
            shutil.rmtree(run / "model")
        path = draw.choice(sorted(path for path in run.rglob("*") if path.is_file()))
        way = draw.choice(WAYS if path.suffix != ".png" else WAYS[:5])  # a whole mask in another's place is a mask
        way(path, draw)
        said = {name: outcome(verb) for name, verb in verbs(run, photo).items()}
        if set(said.values()) == {"done"}:
            assert same(results(run), expected), (path, way)
        yield f"{path.relative_to(run)}: {way.__name__}", said
        shutil.rmtree(run.parent)


def test_damaged_states_are_said_or_mended(whole: Path, data: Path, tmp_path: Path) -> None:
    counts = Counter[str]()
    for what, said in campaign(27, times(6, 12), whole, data, tmp_path):
        for text in said.values():
            assert text == "done" or len(text) < 2000, what
        counts["done rightly" if set(said.values()) == {"done"} else "said"] += 1
    told(counts)


def test_a_run_is_used_from_another_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    shutil.copy(data / "tags.csv", tmp_path / "mine.csv")
    monkeypatch.chdir(tmp_path)
    words = {"data": {"root": str(data), "tags": "mine.csv"}}
    train(load_config(tiny(data).model_dump(mode="json"), words), out)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert label(out).written
    monkeypatch.chdir(tmp_path)
    assert resumed(RunFolder(out), [], words, []).data.tags == tmp_path / "mine.csv"
