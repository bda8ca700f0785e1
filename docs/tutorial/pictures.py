"""Draws the tutorial's pictures from a folder in which its commands were typed.

python docs/tutorial/pictures.py FOLDER photos report first     # after step 5
python docs/tutorial/pictures.py FOLDER click                   # in step 6: reviews as the page says, in a browser
python docs/tutorial/pictures.py FOLDER second holiday          # after step 8
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from scipy.ndimage import distance_transform_edt

from tagmask.data import read_mask
from tagmask.data.review import Journal
from tagmask.report import overlay
from tagmask.view.index import Index
from tagmask.workflow import Run

HERE = Path(__file__).parent
CHROMIUM = os.environ.get("TAGMASK_CHROMIUM") or shutil.which("chromium")
SHOWN = 6


def main(folder: str, *names: str) -> None:
    os.chdir(folder)
    for name in names:
        if name in ("photos", "report", "click"):
            {"photos": photos, "report": report, "click": click}[name]()
        else:
            masks(name)


def grid(name: str, pictures: list[tuple[str, np.ndarray]], columns: int) -> None:
    """Pictures of uint8 (H,W,3) under their titles."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(9, 8 / columns * rows), layout="constrained", squeeze=False)
    for axis, (title, picture) in zip(axes.flat, pictures, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_axis_off()
    figure.savefig(HERE / f"{name}.jpg", dpi=100, pil_kwargs={"quality": 85})
    plt.close(figure)


def photos() -> None:
    with open("tags.csv", newline="") as file:
        rows = list(csv.DictReader(file))[:SHOWN]
    grid("photos", [(r["tags"] or "(none)", np.asarray(Image.open(f"photos/{r['image']}"))) for r in rows], 3)


def doubtful() -> list[str]:
    """The photos whose masks of the first run are the most doubtful, apart from those of the review."""
    reviewed = Journal("runs/first").decisions()
    with open("runs/first/quality.csv", newline="") as file:
        return [row["photo"] for row in csv.DictReader(file) if row["photo"] not in reviewed][:SHOWN]


def covered(photo: str, mask: str) -> np.ndarray:
    image = np.asarray(Image.open(photo).convert("RGB"))
    return overlay(image, read_mask(Path(mask), 99).numpy())


def masks(name: str) -> None:
    """Of the run ``name``, or of 'holiday'."""
    if name == "holiday":
        found = sorted(Path("holiday").glob("*.png"))[:SHOWN]
        grid(name, [(p.stem, covered(str(p), f"holiday_masks/{p.stem}.png")) for p in found], 3)
        return
    shown = [(id, covered(f"photos/{id}.png", f"runs/{name}/masks/{id}.png")) for id in doubtful()]
    grid(name, shown, 3)


def in_browser(do: Callable[[Any], None]) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.set_default_timeout(60000)
        do(page)
        browser.close()


def report() -> None:
    def look(page: Any) -> None:
        page.goto(Path("runs/first/report.html").resolve().as_uri())
        page.screenshot(path=HERE / "report.jpg", type="jpeg", quality=85)

    in_browser(look)


def click() -> None:
    """Review the photos that are suggested, as a person would who sees what the true masks show.

    Clicks go into the middle of the largest fault, until few are left. Where ten clicks do not suffice, as on a
    pavement of single stones, the true mask stands for one that a person draws with the brush.
    """
    words = [sys.executable, "-m", "tagmask", "review", "runs/first", "--suggest", "10", "--json"]
    suggested = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)["suggested"]
    words = [sys.executable, "-m", "tagmask", "view", "runs/first", "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[1]

        def review(page: Any) -> None:
            page.goto(address)
            page.locator('[data-testid="cell-0"]').wait_for()
            for row in suggested:
                correct(page, row["photo"])

        try:
            in_browser(review)
        finally:
            server.terminate()
    journal = Journal("runs/first")
    for row in suggested:
        photo, decision = row["photo"], journal.decisions().get(row["photo"])
        if decision is None:
            journal.add(photo, "accept")
        elif wrong(read_mask(Path(str(decision.mask)), 99).numpy(), photo) > 0.07:
            journal.add(photo, "mask", labels=truth_of(photo))
    drawn = {photo: decision.mask for photo, decision in Journal("runs/first").decisions().items()}
    pairs = []
    for photo in ("scene_0009", "scene_0027", "scene_0023"):
        file = f"photos/{photo}.png"
        pairs.append((photo, covered(file, f"runs/first/masks/{photo}.png")))
        pairs.append(("after clicks", covered(file, str(drawn[photo]))))
    grid("click", pairs[::2] + pairs[1::2], 3)


def truth_of(photo: str) -> np.ndarray:
    return read_mask(Path(f"drawn/masks/{photo}.png"), 99).numpy()


def wrong(labels: np.ndarray, photo: str) -> float:
    """Share of the pixels whose label is wrong."""
    return float((labels != truth_of(photo)).mean())


def correct(page: Any, photo: str) -> None:
    """Click in the middle of the largest fault of a photo's mask, until one pixel in forty is wrong, and save it."""
    truth = truth_of(photo)
    page.evaluate(f"location.hash = '#/photo/{Index(Run('runs/first')).place[photo]}'")
    canvas = page.locator('[data-testid="canvas"]')
    canvas.wait_for()
    page.wait_for_timeout(3000)  # until the mask is there
    page.locator('[data-testid="tool-click"]').click()
    height, width = truth.shape
    for _ in range(10):
        rows = f"[...Array({height}).keys()].map(y => row(y))"
        row = f"const row = y => [...Array({width}).keys()].map(x => window.tagmaskView.labelAt(x, y));"
        shown = np.array(page.evaluate(f"() => {{ {row} return {rows}; }}"))
        if wrong(shown, photo) < 1 / 40:
            break
        x, y = largest_fault(shown, truth)
        page.locator('[data-testid="paint"]').select_option(str(truth[y, x]))
        box = canvas.bounding_box()
        scale = min(box["width"] / width, box["height"] / height)  # the photo is fitted into the canvas, in its middle
        left, top = (box["width"] - scale * width) / 2, (box["height"] - scale * height) / 2
        page.mouse.click(box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale)
        page.wait_for_timeout(2000)
    save = page.locator('[data-testid="save"]')
    if save.is_enabled():
        save.click()
        page.wait_for_timeout(1500)


def largest_fault(shown: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """x and y of the innermost pixel of the fault that is the widest; a fault is of one true label."""
    depth = np.max([distance_transform_edt(np.pad((shown != truth) & (truth == k), 1)) for k in np.unique(truth)], 0)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x) - 1, int(y) - 1


if __name__ == "__main__":
    main(*sys.argv[1:])
