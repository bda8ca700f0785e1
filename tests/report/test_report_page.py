"""The report: self-contained, escaped, complete, and whatever is missing is left out."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.pixels import palette
from tagmask.errors import DataError
from tagmask.evaluate import ScoreStream, ThresholdCurve
from tagmask.evaluate.stamp import describe
from tagmask.label.overlay import heat, overlay
from tagmask.report import Panel, page, write_report
from tagmask.report.page import LACKING, choose

CLASSES = ["cat", "dog $x$", "<b>boat</b>"]


def panel(i: int, score: float | None = None, **parts) -> Panel:
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
    return Panel(f"photo{i}", image, [CLASSES[i % 3]], CLASSES, score=score, **parts)


def full_panel(i: int, score: float | None = None) -> Panel:
    labels = np.zeros((30 + i, 40), dtype=np.uint8)
    labels[5:20, 5:20] = i % 3 + 1
    labels[:3] = 255
    cam = np.random.default_rng(i).random((2, 30 + i, 40))
    return panel(i, score, cam=cam, cam_names=CLASSES[:2], refined=labels, prediction=labels, truth=labels)


def scores() -> list[dict]:
    rng = np.random.default_rng(0)
    stream, curve = ScoreStream(4), ThresholdCurve(4, 20)
    for i in range(8):
        target = rng.integers(0, 4, (10, 10))
        stream.update(f"photo{i}", np.where(rng.random((10, 10)) < 0.7, target, 0), target)
        curve.update(rng.random((3, 10, 10)), np.ones(3), target)
    stamp = {
        "split": "test", "ids": "abcd1234", "images": 8, "left_out": 0, "truth": "masks", "tags": True,
        "threshold": 0.3, "threshold_from": "this split", "settings": {"label.refine": "par"}, "version": "0.1.0",
        "run": {"method": "baseline", "encoder": "resnet18", "supervision": "tags", "weights": "none", "seed": 0},
    }  # fmt: skip
    return [stream.result("segmenter", CLASSES, stamp, curve, bootstrap=20, without=["cat"])]


LOG = [
    {
        "step": s,
        "losses": {"cls": 1 / (s + 1), "seg": 2.0},
        "figures": {"threshold_main": 0.3} if s > 50 else {},
        "lr": 1e-4,
        "images_per_second": 12.5,
    }
    for s in range(100)
] + [{"step": 100, "miou": 0.5}]
FINGERPRINT = {
    "classes": CLASSES,
    "unreadable": [],
    "bad_masks": [],
    "masks": {"warnings": ["Masks hold only 255."]},
    "counts": {"images": 9, "labelled": 9, "empty": 0},
    "splits": {"train": {"images": 6}},
    "tags": {"cat": 4, "dog $x$": 2, "<b>boat</b>": 3},
    "cooccurrence": [[4, 1, 0], [1, 2, 0], [0, 0, 3]],
    "problems": [{"path": "a<i>.jpg", "what": "cannot be read"}],
    "warnings": ["Class 'cat' is on 4 images only."],
}


def written(folder: Path, panels=(), scores=(), log=(), further=()) -> str:
    """The text of a page."""
    metrics = {"scores": scores, "classification": None}
    return write_report(folder, panels, metrics, log, "seed: 0", {}, FINGERPRINT, "a run", further).read_text()


class Page(HTMLParser):
    """Collects what a browser would load, and checks that every element that needs it is closed."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def full_page(tmp_path_factory) -> str:
    """The text of a page that has everything."""
    folder = tmp_path_factory.mktemp("full")
    panels = [full_panel(i, i / 10) for i in range(9)]
    metrics = {
        "scores": scores(),
        "classification": {"split": "val", "map": 0.875, "per_class": {"cat": 0.9}},
    }
    environment = {"torch": "2.11", "device": {"name": "cpu <two cores>"}}
    path = write_report(folder, panels, metrics, LOG, "seed: 7 # <script>", environment, FINGERPRINT, "A & <B>")
    assert path == folder / "report.html" and list(folder.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


def test_one_file_that_needs_nothing_else(full_page):
    page = Page(full_page)
    assert page.open == []
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags and "link" not in page.tags
    pictures = [a for a in page.addresses if a.startswith("data:image/jpeg")]
    assert len(pictures) == 9 * 6  # image, two CAMs, refined, prediction, truth
    first = Image.open(io.BytesIO(b64decode(pictures[0].split(",")[1])))
    assert max(first.size) == 320


def test_what_users_wrote_is_text(full_page):
    page = Page(full_page)
    assert "<b>boat" not in full_page and "<script" not in full_page and "<two" not in full_page
    text = " ".join(page.text)
    assert "<b>boat</b>" in text and "dog $x$" in text and "A & <B>" in text
    assert "a<i>.jpg: cannot be read" in text and "cpu <two cores>" in text and "seed: 7 # <script>" in text


def test_numbers_and_stamps_are_on_the_page(full_page):
    text = " ".join(" ".join(Page(full_page).text).split())
    (score,) = scores()
    for value in (score["miou"], score["miou_strict"], score["miou_without"], score["interval"]["low"], 0.875):
        assert f"{100 * value:.1f}" in text
    assert describe(score["stamp"]) in text
    assert "segmenter on test" in text and "tags given" in text and "threshold 0.3 (this split)" in text
    peak = score["curve"]["peak"]
    assert f"peak {100 * peak['miou']:.1f} at {peak['threshold']:g}" in text
    assert all(f"{name} over training steps" in full_page for name in ("seg", "threshold_main", "learning rate"))
    assert "Masks hold only 255." in text and "Class 'cat' is on 4 images only." in text
    assert "12.5 images a second" in text and "images: 9" in text and "in train: 6" in text and "empty" not in text
    assert re.search(r"Best.*photo8.*Worst.*photo0", text)


def test_what_is_missing_is_left_out(tmp_path):
    page = Page(written(tmp_path, [panel(0), panel(1)]))
    assert page.open == []
    assert len([a for a in page.addresses if a.startswith("data:image/jpeg")]) == 2
    text = " ".join(page.text)
    assert "Samples" in text and "Best" not in text and "nothing is scored" in text
    for section in ("Scores", "Training", "CAM threshold"):
        assert section not in text


def test_a_score_without_interval_or_a_nan_still_prints(tmp_path):
    (score,) = scores()
    score |= {"miou": None, "interval": None, "curve": None, "images": None}
    text = " ".join(Page(written(tmp_path, scores=[score])).text)
    assert "– % mIoU" in " ".join(text.split())


def test_odd_photos(tmp_path):
    thin = Panel("thin", np.zeros((50, 1, 3), np.uint8), [], CLASSES, np.zeros((1, 50, 1)), ["cat"], score=0.2)
    low = Panel("low", np.zeros((64, 96, 3), np.uint8), ["cat"], CLASSES, np.ones((1, 4, 6)), ["cat"], score=0.1)
    page = Page(written(tmp_path, [thin, low]))
    assert {"thin", "low"} <= {word for text in page.text for word in text.split()}


def test_best_and_worst_do_not_overlap():
    panels = [panel(i, i / 20) for i in range(20)]
    (_, best), (_, worst) = choose(panels)
    assert [p.score for p in best] == [i / 20 for i in range(19, 13, -1)]
    assert [p.score for p in worst] == [i / 20 for i in range(6)]
    (_, best), (_, worst) = choose(panels[:3])
    assert not {p.id for p in best} & {p.id for p in worst} and len(best) + len(worst) == 3
    assert [name for name, _ in choose(panels[:1])] == ["Best"]
    assert [name for name, _ in choose([panel(0), panel(1)])] == ["Samples"] and choose([]) == []


def test_masks_that_lack_a_class_are_a_group_of_their_own(tmp_path):
    scored = [panel(i, i / 20) for i in range(20)]
    for one in (scored[0], scored[10]):
        one.missing = ["dog"]
    extra = panel(30, 0.99)
    extra.missing = ["cat"]
    name, members = choose(scored, [extra])[-1]
    assert name == LACKING and [p.id for p in members] == [scored[10].id, extra.id], "the worst is shown already"
    assert LACKING not in dict(choose(scored[:1]))
    page = written(tmp_path, scored, further=[extra])
    assert page.count("not in the mask: dog") == 2 and page.count("not in the mask: cat") == 1
    best = page[page.index(">Best") : page.index(">Worst")]
    assert extra.id not in best, "it was chosen for what it lacks"
    page = written(tmp_path, [panel(0)], further=[extra])
    assert page.index(LACKING) < page.index(extra.id), "no sample"


def test_overlay_tints_outlines_and_hatches():
    image = np.full((20, 20, 3), 100, dtype=np.uint8)
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[5:15, 5:15] = 2
    labels[17:] = 255
    result = overlay(image, labels, alpha=0.25)
    assert (result[:5] == 100).all()
    colour = palette()[2].astype(float)
    np.testing.assert_allclose(result[10, 10], 0.75 * 100 + 0.25 * colour, atol=1)
    np.testing.assert_array_equal(result[5, 10], colour)  # outline
    stripes = np.unique(result[17:])
    np.testing.assert_allclose(stripes, [0.75 * 100 + 0.25 * 120, 0.75 * 100 + 0.25 * 225], atol=1)
    with pytest.raises(DataError):
        overlay(image, labels[1:])


def test_heat_grows_lighter_with_the_activation():
    image = np.full((1, 5, 3), 128, dtype=np.uint8)
    result = heat(image, np.array([[0.0, 0.25, 0.5, 0.75, 1.0]])).astype(int)
    light = result[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(light) > 0).all() and result[0, 0, 2] > result[0, 0, 1] and result[0, 4, 1] > result[0, 4, 2]
    np.testing.assert_array_equal(heat(image, np.full((1, 5), 7.0)), heat(image, np.ones((1, 5))))
    with pytest.raises(DataError):
        heat(image, np.zeros((2, 5)))


def test_a_class_that_is_all_unsure_is_named_so(full_page, tmp_path):
    (score,) = scores()
    assert "all unsure" not in full_page
    score["per_class"]["cat"] |= {"iou": None}
    assert "all unsure" in written(tmp_path, scores=[score])


@pytest.mark.parametrize("size", [(332, 500), (700, 201), (291, 291)])
def test_pictures_of_a_photo_have_one_size_whatever_the_grid_of_its_cams(size: tuple[int, int], tmp_path) -> None:
    cam = np.random.default_rng(0).random((1, size[0] // 2, size[1] // 3))
    labels = np.zeros(size, np.uint8)
    photo = Panel("a", np.zeros((*size, 3), np.uint8), ["cat"], CLASSES, cam, ["cat"], labels, labels, labels)
    addresses = re.findall(r"base64,([^\"']+)", written(tmp_path, [photo]))
    assert len(addresses) == 5 and len({Image.open(io.BytesIO(b64decode(data))).size for data in addresses}) == 1


def test_cams_of_reduced_photos_of_all_sizes_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every height and every width from 200 to 700 pixels, with CAMs on the grid of ``views.short_side=291``."""
    monkeypatch.setattr(page, "SIDE", 12)
    for i in range(501):
        height, width = 200 + i, 200 + 37 * i % 501
        factor = min(1.0, 291 / min(height, width))
        cam = np.zeros((1, round(height * factor), round(width * factor)), np.float32)
        image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))
        addresses = [address for _, address in page._pictures(Panel("a", image, ["cat"], CLASSES, cam, ["cat"]))]
        sizes = {Image.open(io.BytesIO(b64decode(address.partition(",")[2]))).size for address in addresses}
        assert len(addresses) == 2 and len(sizes) == 1, (height, width)
