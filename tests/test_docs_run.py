"""What the tutorial and the how-to pages say to type is typed, in order, in a folder like their reader's."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data import read_mask, write_demo
from tagmask.data.review import Journal
from tagmask.workflow import Run
from tests.cli.calls import call
from tests.test_docs import ROOT, parsed

TUTORIAL = ROOT / "docs" / "tutorial.md"
HOW = sorted((ROOT / "docs" / "how").glob("*.md"))
NOT_RUN = {
    r"^tagmask view ": "a server, which ends with Ctrl-C; tests/view starts it",
    r"^(srun|torchrun) ": "a cluster, or processes that the command does not start itself",
    r" train\.devices=\d": "starts further processes by the command line of this one, which is pytest's",
    r" --engine ray": "starts processes of Ray; tests/label/test_ray_engine.py does",
    r" guides\.saliency=": "needs a network that is no part of tagmask",
}
"""Lines that are only parsed, and why."""
BEFORE = re.compile(r"(?:\w+=\S+ |nice |srun |torchrun |--\S+ |-m (?=tagmask ))*(?=tagmask )")
"""What may stand before the command on its line."""
TINY = [
    "encoder.name=test_resnet", "encoder.weights=none", "views.crop=32", "train.steps=2", "train.batch_size=2",
    "train.workers=0", "train.warmup=0", "train.accelerator=cpu", "label.cam_scales=[1.0]", "label.scales=[1.0]",
    "label.flip=false", "label.crf=none", "evaluate.bootstrap=0",
]  # fmt: skip
"""Added to what is typed, so that it takes seconds."""
PACKAGED = "tf_efficientnet_lite0"


def typed(page: Path) -> list[str]:
    """The page's commands and Python blocks, in order: continued lines joined, comments and other commands left out."""
    found = []
    for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M):
        if kind == "python":
            found.append(body)
        elif kind in ("", "bash"):
            lines = (line.partition("  #")[0].strip() for line in re.sub(r"\\\n\s*", "", body).splitlines())
            found += [line for line in lines if BEFORE.match(line)]
    return found


def is_command(text: str) -> bool:
    return "\n" not in text


def shortened(words: list[str]) -> list[str]:
    """What is added to a command."""
    if words[:2] == ["check", "photos"] and "--suspects" in words:
        return ["-e", PACKAGED]  # the weights that come as a package: tests load none from the internet
    if words[0] not in ("run", "train") or {"--resume", "--reviewed"} & set(words):
        return []
    if "class_transfer" in words:  # it reads the classes that a network was pretrained on
        return [f"encoder.name={PACKAGED}", "encoder.weights=package", *TINY[2:]]
    return [word for word in TINY if word != "encoder.weights=none" or "--weights" not in words]


def do(text: str) -> None:
    """Run a command or a Python block as it stands, but for what makes it short."""
    if not is_command(text):
        exec(text, {})  # noqa: S102
    elif not any(re.search(pattern, text) for pattern in NOT_RUN):
        words = shlex.split(BEFORE.sub("", text))[1:]
        call(*words, *shortened(words))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the how-to pages have it: photos, tags, true masks, new photos, a finished run."""
    root = tmp_path_factory.mktemp("place")
    write_demo(root / "drawn", images=12, size=(64, 80), seed=3)
    write_demo(root / "later", images=8, size=(64, 80), seed=8)
    for source, name in {"drawn/images": "photos", "drawn/masks": "masks", "later/images": "holiday"}.items():
        shutil.copytree(root / source, root / name)
    shutil.copytree(root / "holiday", root / "aerial")
    for name in ("tags.csv", "classes.txt"):
        shutil.copy(root / "drawn" / name, root)
    Image.open(root / "photos" / "scene_0000.png").save(root / "photo.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        call("run", "photos", "--tags", "tags.csv", "--masks", "masks", "-o", "runs/first", *TINY)
    shutil.copytree(root / "runs" / "first", root / "runs" / "second")
    Journal(root / "runs" / "first").add("scene_0000", "accept")
    return root


def test_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tagmask.data.write_demo", lambda out, images, seed: write_demo(out, 8, (64, 80), seed))
    drawn = np.full((64, 80), 1, dtype=np.uint8)
    for text in typed(TUTORIAL):
        if "--reviewed" in text:  # what the reader does in the viewer
            _, accepted, rejected, retagged, corrected, *_ = [i.id for i in Run("runs/first").collection.split("train")]
            journal = Journal("runs/first")
            journal.add(accepted, "accept")
            journal.add(rejected, "reject")
            journal.add(retagged, "tags", ["boat"])
            journal.add(corrected, "mask", labels=drawn)
        do(text)
    assert {"report.html", "masks", "quality.csv"} <= {path.name for path in Path("runs/first").iterdir()}
    assert len(list(Path("holiday_masks").glob("*.png"))) == 8 and Path("one_mask.png").is_file()
    assert (read_mask(f"final_masks/{corrected}.png", 99) == 1).all()
    assert not Path(f"final_masks/{rejected}.png").exists() and Path("site/index.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", HOW, ids=lambda page: page.stem)
def test_a_how_to_page_works(page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(place, tmp_path / "place"))
    for text in typed(page):
        do(text)


@pytest.mark.parametrize("page", [TUTORIAL, *HOW], ids=lambda page: page.stem)
def test_what_a_page_says_can_be_parsed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is not run, and what stands behind other words on its line."""
    found = typed(page)
    assert any(is_command(text) for text in found)
    for text in found:
        if is_command(text):
            parsed(re.sub(r"\$\w+", "0", BEFORE.sub("", text)))
        else:
            compile(text, page.name, "exec")


def test_every_reason_not_to_run_is_needed() -> None:
    lines = [text for page in (TUTORIAL, *HOW) for text in typed(page) if is_command(text)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern
