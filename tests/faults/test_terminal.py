"""The command line's boundary: any terminal, any disk, any name; one line with the cause, never a traceback."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tagmask.workflow
from tagmask.cli import main
from tagmask.data import write_demo

TINY = [
    "encoder.name=test_resnet", "encoder.weights=none", "views.crop=32", "train.steps=1", "train.batch_size=4",
    "train.workers=0", "train.warmup=0", "train.accelerator=cpu", "method.warmup=0", "method.head_options={hidden: 8}",
    "label.cam_scales=[1.0]", "evaluate.bootstrap=5", "data.train=train.txt", "data.val=val.txt", "data.test=test.txt",
]  # fmt: skip
CLASS = "Bäume – 猫 ✓ [bold] <b>"
"""A class that no old encoding can print as it is."""
ENCODINGS = ["utf-8", "cp1252", "cp932", "latin-1", "ascii"]


def typed(*words: object, encoding: str = "utf-8", out: io.TextIOWrapper | None = None) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command on a terminal of an encoding."""
    streams = [out or io.TextIOWrapper(io.BytesIO(), encoding), io.TextIOWrapper(io.BytesIO(), encoding)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tagmask", *map(str, words)])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            main()
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
    texts = []
    for stream in streams if out is None else streams[1:]:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    return status, texts[0] if out is None else "", texts[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_demo(folder, images=12, size=(48, 64), seed=3)
    for name in ("tags.csv", "classes.txt"):
        text = (folder / name).read_text("utf-8")
        (folder / name).write_text(text.replace("boat", CLASS), "utf-8")
    columns = "[{title: c, split: test, score: cam}]"
    (folder.parent / "t.yaml").write_text(f"title: t\ncolumns: {columns}\nrows: [{{name: r}}]\n")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    status, _, said = typed("train", data, "--masks", data / "masks", "-o", out, *TINY, encoding="ascii")
    assert status == 0, said
    assert typed("label", run := out, encoding="cp932")[0] == 0
    return run


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_terminal_shows_results(encoding: str, data: Path, run: Path, tmp_path: Path) -> None:
    for words in (["check", data, "--save", tmp_path / "f.json"], ["evaluate", run], ["methods", "cosa"], ["methods"]):
        status, shown, said = typed(*words, encoding=encoding)
        assert status == 0 and len(shown) > 100, (words, said)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_terminal_shows_errors(encoding: str, data: Path) -> None:
    for words in (["check", "no \udce9 猫"], ["train", data, "data.classes=[猫, true]"], ["evaluate", "\x1b[1m猫"]):
        status, _, said = typed(*words, encoding=encoding)
        assert status == 1 and said.startswith("error: ") and "Traceback" not in said and "\x1b" not in said


OUT: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "train": lambda data, run, out: ["train", data, "-o", out, *TINY],
    "run": lambda data, run, out: ["run", data, "-o", out, *TINY],
    "label": lambda data, run, out: ["label", run, "-o", out],
    "predict": lambda data, run, out: ["predict", run, data / "images", "-o", out],
    "demo": lambda data, run, out: ["demo", "-o", out, *TINY],
    "reproduce": lambda data, run, out: ["reproduce", data.parent / "t.yaml", "--data", data, "-o", out, *TINY],
    "check": lambda data, run, out: ["check", data, "--save", out / "fingerprint.json"],
    "results": lambda data, run, out: ["convert", "coco-results", run / "masks", out / "results.json"],
}


@pytest.mark.parametrize("verb", OUT)
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_way_is_named(verb: str, place: str, data: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, _, said = typed(*OUT[verb](data, run, tmp_path / place))
    assert status == 1 and str(tmp_path / "file") in said and len(said.strip().splitlines()) == 1, said


@pytest.mark.parametrize("verb", [*OUT, "evaluate", "report"])
@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_named(
    verb: str, cause: int, data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Path, *rest: object, **named: object) -> None:
        raise OSError(cause, "Nothing is written", str(self))

    for name in ("replace", "rename", "write_text", "mkdir"):
        monkeypatch.setattr(Path, name, fails)
    words = OUT[verb](data, run, tmp_path / "new") if verb in OUT else [verb, run]
    status, _, said = typed(*words)
    place = str(tmp_path / "new") if verb in OUT else str(run)
    assert status == 1 and place in said and "Nothing is written" in said and "Traceback" not in said


def test_a_full_disk_behind_standard_output() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        status, _, said = typed("methods", "--json", out=io.TextIOWrapper(full, "utf-8", write_through=True))
    assert status == 1 and "No space left" in said


@pytest.mark.parametrize(
    "error",
    [UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates"), MemoryError(), OSError(errno.EIO, "I/O", "a.png")],
)
def test_errors_of_the_system_are_one_line(error: Exception, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> None:
        raise error

    monkeypatch.setattr(tagmask.workflow, "report", fails)
    status, _, said = typed("report", run)
    assert status == 1 and said.startswith("error: ") and len(said.splitlines()) == 1


def test_messages_are_short(data: Path) -> None:
    for word in (f"seed={'9' * 100_000}", f"train.{'x' * 100_000}=1", "x" * 100_000, f"train.betas=[{'[' * 100_000}"):
        status, _, said = typed("train", data, word)
        assert status == 1 and len(said.encode()) < 2100


def test_a_long_setting_is_no_path(data: Path, tmp_path: Path) -> None:
    classes = ", ".join(f"class{i}" for i in range(100))
    status, _, said = typed("train", data, f"data.classes=[{classes}]", "-o", tmp_path / "new", *TINY)
    assert status == 1 and "is not a class" in said
