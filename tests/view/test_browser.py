"""The viewer in a browser: look, filter, decide, correct, undo; nothing is lost. Pictures for docs/ come from here.

TAGMASK_DEMO=runs/demo TAGMASK_PICTURES=docs pytest tests/view/test_browser.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from tagmask.data import read_image, read_mask, write_demo, write_mask
from tagmask.data.review import Journal
from tagmask.files import write_text
from tagmask.workflow import Run, report, run
from tests.workflow.conftest import BASE

pytest.importorskip("fastapi")
from tagmask.view.index import Index  # noqa: E402
from tagmask.view.site import write_site  # noqa: E402
from tagmask.view.spread import spread  # noqa: E402

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = os.environ.get("TAGMASK_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, or set TAGMASK_CHROMIUM to its path")
PICTURES = os.environ.get("TAGMASK_PICTURES")
SIZE = (240, 320) if PICTURES else (96, 128)
"""Of the scenes, pixels; smaller ones are quicker."""
FOUND = 60 * 1000
"""Milliseconds that a busy machine may take to show something."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on drawn scenes whose masks are the true ones, but for the first training photo, which lacks a class."""
    folder = tmp_path_factory.mktemp("browser")
    write_demo(folder / "scenes", images=12, size=SIZE, seed=3)
    data = {"root": str(folder / "scenes"), "train": "train.txt", "val": "val.txt", "test": "test.txt"}
    run([BASE, {"data": data}], {}, [], folder / "first")
    opened = Run(folder / "first")
    for item in opened.collection.items:
        write_mask(opened.folder.masks / f"{item.id}.png", read_mask(item.mask or "", 99))
    photo, label = lacking(opened)
    item = opened.collection.item(photo)
    labels = read_mask(item.mask or "", 99)
    labels[labels == label] = 0
    write_mask(opened.folder.masks / f"{photo}.png", labels)
    name = opened.collection.classes[label - 1]
    write_text(opened.folder.masks / "missing.csv", f"image,class\n{photo},{name}\n")
    return folder / "first"


def lacking(opened: Run) -> tuple[str, int]:
    """The photo whose mask lacks a class, and the label: of the first photos that train, what one click fills best."""
    best = ("", 0, 0.0)
    for item in opened.collection.split("train")[:6]:
        truth = read_mask(item.mask or "", 99).numpy()
        photo = read_image(item.image).permute(1, 2, 0).numpy()
        for label in [tag + 1 for tag in item.tags or ()] if len(item.tags or ()) > 1 else []:
            found = spread(photo, np.where(truth == label, 0, truth), [(*inside(truth == label), label)])
            share = overlap(found == label, truth == label)
            best = max(best, (item.id, label, share), key=lambda one: one[2])
    return best[:2]


def inside(there: np.ndarray) -> tuple[int, int]:
    """x and y of the pixel that is farthest from the rim."""
    y, x = np.unravel_index(distance_transform_edt(np.pad(there, 1)).argmax(), np.add(there.shape, 2))
    return int(x) - 1, int(y) - 1


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.fixture
def first(made: Path) -> Path:
    """The run, without a review."""
    (made / "review.jsonl").unlink(missing_ok=True)
    return made


@pytest.fixture(scope="module")
def address(made: Path) -> Iterator[str]:
    """Where 'tagmask view' serves the run."""
    command = [sys.executable, "-m", "tagmask", "view", str(made), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        yield found[0]
        server.terminate()
        assert server.wait(FOUND / 1000) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str, first: Path) -> Iterator[Any]:
    """A page on the grid. Errors on its console fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(FOUND)
    shown = context.new_page()
    faults: list[str] = []
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    shown.goto(address)
    at(shown, "cell-0").wait_for()
    yield shown
    context.close()
    assert not faults


def at(shown: Any, name: str) -> Any:
    return shown.locator(f'[data-testid="{name}"]')


def picture(shown: Any, name: str) -> None:
    """A screenshot for the documentation, where it is asked for."""
    if PICTURES:
        shown.wait_for_timeout(1500)  # until the pictures on the page are there
        path = Path(PICTURES) / f"{name}.png"
        shown.screenshot(path=str(path))
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def until(shown: Any, wanted: str | Callable[[], bool]) -> None:
    """Wait for something, or a page's expression, to be true. (The page's policy forbids the driver's way to wait.)"""
    end = time.monotonic() + FOUND / 1000
    while not (shown.evaluate(wanted) if isinstance(wanted, str) else wanted()):
        assert time.monotonic() < end, wanted
        shown.wait_for_timeout(100)


def open_photo(shown: Any, n: int) -> None:
    shown.evaluate(f"location.hash = '#/photo/{n}'")
    at(shown, "canvas").wait_for()
    until(shown, "window.tagmaskView && window.tagmaskView.labelAt(0, 0) !== undefined")


def on_canvas(shown: Any, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the photo is on the page: the photo is fitted into the canvas, in its middle."""
    box = at(shown, "canvas").bounding_box()
    scale = min(box["width"] / SIZE[1], box["height"] / SIZE[0])
    left = box["x"] + (box["width"] - scale * SIZE[1]) / 2
    top = box["y"] + (box["height"] - scale * SIZE[0]) / 2
    return left + (x + 0.5) * scale, top + (y + 0.5) * scale


def test_photos_are_filtered_and_decided_about_by_keys(page: Any, first: Path) -> None:
    picture(page, "view_grid")
    opened = Run(first)
    assert "12" in at(page, "total").inner_text()
    at(page, "filter-split").select_option("val")
    count = len(opened.collection.split("val"))
    until(page, f"document.querySelector('[data-testid=total]')?.innerText.startsWith('{count} ') ?? false")
    assert page.locator('[data-testid^="cell-"]').count() == count
    page.reload()
    until(page, f"document.querySelector('[data-testid=total]')?.innerText.startsWith('{count} ') ?? false")
    cell = page.locator('[data-testid^="cell-"]').first
    cell.wait_for()
    cell.focus()
    page.keyboard.press("a")
    until(page, "document.querySelector('[data-testid^=cell-]')?.innerText.includes('✓')")
    photo = opened.collection.split("val")[0].id
    assert Journal(first).decisions()[photo].verdict == "accept"
    page.keyboard.press("u")
    until(page, "document.querySelector('[data-testid^=cell-]')?.innerText.includes('✓') === false")
    assert Journal(first).decisions() == {}


def test_a_mask_is_corrected_by_a_click_and_nothing_is_lost(page: Any, first: Path) -> None:
    opened = Run(first)
    photo, label = lacking(opened)
    n = Index(opened).place[photo]
    truth = read_mask(opened.collection.item(photo).mask or "", 99).numpy()
    x, y = inside(truth == label)
    open_photo(page, n)
    picture(page, "view_photo")
    shown = f"window.tagmaskView.labelAt({x}, {y})"
    assert page.evaluate(shown) == 0
    page.mouse.move(*on_canvas(page, x, y))
    assert "background" in at(page, "readout").inner_text()
    other = next(value for value in np.unique(truth) if value not in (0, 255, label))
    at(page, f"toggle-{other}").uncheck()
    at(page, "tool-click").click()
    at(page, "paint").select_option(str(label))
    page.mouse.click(*on_canvas(page, x, y))
    until(page, f"{shown} === {label}")
    picture(page, "view_click")
    at(page, "stroke-undo").click()
    until(page, f"{shown} === 0")
    page.mouse.click(*on_canvas(page, x, y))
    until(page, f"{shown} === {label}")
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()  # with strokes that are not saved yet
    at(page, "canvas").wait_for()
    until(page, f"window.tagmaskView && {shown} === {label}")
    assert not (first / "review.jsonl").exists()
    at(page, "save").click()
    until(page, lambda: photo in Journal(first).decisions())
    drawn = Journal(first).decisions()[photo].mask
    assert drawn is not None
    labels = read_mask(drawn, 99).numpy()
    there, wanted = labels == label, truth == label
    assert wanted[there].mean() > 0.9 and there[wanted].mean() > 0.2, "of what one click fills, and of what there is"
    assert (labels[truth == 0] == 0).mean() > 0.9 and labels.shape == truth.shape
    page.reload()
    at(page, "canvas").wait_for()
    until(page, f"window.tagmaskView && {shown} === {label}")
    at(page, "undo").click()
    until(page, f"{shown} === 0")
    assert Journal(first).decisions() == {} and drawn.is_file(), "an undo takes nothing from the disk"


def test_a_mask_that_is_saved_before_its_answer_came_is_of_its_photo(page: Any, first: Path) -> None:
    opened = Run(first)
    photo, label = lacking(opened)
    n = Index(opened).place[photo]
    x, y = inside(read_mask(opened.collection.item(photo).mask or "", 99).numpy() == label)
    open_photo(page, n)
    held: list[Any] = []
    page.route("**/api/click/*", lambda route: held.append(route))
    at(page, "tool-click").click()
    at(page, "paint").select_option(str(label))
    page.mouse.click(*on_canvas(page, x, y))
    until(page, lambda: bool(held))
    page.keyboard.press("Control+s")
    page.keyboard.press("k")
    page.get_by_role("button", name="Save", exact=True).click()
    assert not (first / "review.jsonl").exists()
    held[0].continue_()
    until(page, f"location.hash.startsWith('#/photo/{n + 1}')")
    decisions = Journal(first).decisions()
    drawn = decisions[photo].mask
    assert decisions.keys() == {photo} and drawn is not None and int(read_mask(drawn, 99)[y, x]) == label


def test_tags_are_edited_and_a_second_browser_sees_it(page: Any, first: Path, browser: Any, address: str) -> None:
    opened = Run(first)
    item = opened.collection.items[0]
    other = browser.new_context()
    other.set_default_timeout(FOUND)
    second = other.new_page()
    second.goto(page.url.split("#")[0])
    assert "token" in second.inner_text("body"), "without the token nothing is shown"
    second.goto(address)
    at(second, "cell-0").wait_for()
    open_photo(page, 0)
    new = next(c for i, c in enumerate(opened.collection.classes) if i not in (item.tags or ()))
    old = (item.tags or ())[0] + 1
    at(page, f"chip-{old}").locator("button").click()
    at(page, f"chip-{old}").wait_for(state="detached")
    at(page, "tag-input").fill(new[:3])
    page.keyboard.press("Enter")
    at(page, f"chip-{opened.collection.classes.index(new) + 1}").wait_for()
    tags = Journal(first).decisions()[item.id].tags
    assert tags is not None and new in tags and opened.collection.classes[old - 1] not in tags
    until(second, f"document.querySelector('[data-testid=cell-0]')?.innerText.includes('{new}')")
    assert "✎" in at(second, "cell-0").inner_text()
    other.close()


def test_the_page_works_on_a_phone(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    context.set_default_timeout(FOUND)
    shown = context.new_page()
    shown.goto(address)
    at(shown, "cell-0").wait_for()
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    at(shown, "cell-0").tap()
    at(shown, "canvas").wait_for()
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    picture(shown, "view_phone")
    at(shown, "accept").tap()
    until(shown, "document.querySelector('[data-testid=status]').innerText !== ''")
    context.close()


def test_the_site_shows_the_same_from_any_web_server(first: Path, browser: Any, tmp_path: Path) -> None:
    write_site(first, tmp_path / "site")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shown = browser.new_page()
        shown.set_default_timeout(FOUND)
        faults: list[str] = []
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.goto(f"http://127.0.0.1:{server.server_port}/")
        at(shown, "cell-0").wait_for()
        photo, label = lacking(Run(first))
        n = Index(Run(first)).place[photo]
        open_photo(shown, n)
        truth = read_mask(Run(first).collection.items[n].mask or "", 99).numpy()
        x, y = inside(truth == label)
        at(shown, "kind-truth").click()
        until(shown, f"window.tagmaskView.labelAt({x}, {y}) === {label}")
        at(shown, "kind-mask").click()
        until(shown, f"window.tagmaskView.labelAt({x}, {y}) === 0")
        at(shown, "side").click()
        until(shown, "document.querySelectorAll('canvas').length > 3")
        assert at(shown, "accept").count() == at(shown, "tool-brush").count() == 0, "it is for looking"
        shown.close()
        server.shutdown()
    assert not faults


def test_the_report_says_first_what_matters(first: Path, browser: Any) -> None:
    shown = browser.new_page(viewport={"width": 1280, "height": 800})
    shown.goto(report(os.environ.get("TAGMASK_DEMO") or first).resolve().as_uri())
    assert [shown.locator("h2").nth(i).inner_text() for i in range(3)] == [
        "What was learned",
        "How good the masks are",
        "What to look at next",
    ]
    picture(shown, "report")
    shown.set_viewport_size({"width": 390, "height": 844})
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    shown.close()
