"""How quick the viewer is with many photos: seconds to the first page, to the last one, and memory of the server.

    python benchmarks/view.py --photos 100000

Photos and masks are links to a few drawn scenes. The server runs as 'tagmask view' does, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

from tagmask.config import dump_yaml, load_config
from tagmask.data import open_data, write_demo
from tagmask.files import csv_text, write_json, write_text
from tagmask.training.folder import FORMAT
from tagmask.workflow.opened import split_digest
from tagmask.workflow.quality import HEADER

DRAWN = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=100_000)
    count = parser.parse_args().photos
    with tempfile.TemporaryDirectory() as place:
        run = make_run(Path(place), count)
        began = time.perf_counter()
        command = [sys.executable, "-m", "tagmask", "view", str(run), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = re.search(r"http://\S+", server.stdout.readline())
                assert address is not None
                print(f"{time.perf_counter() - began:.1f} s until the address is printed")
                ask(address[0], server.pid, count)
            finally:
                server.terminate()


def make_run(place: Path, count: int) -> Path:
    """A run folder of ``count`` photos, without networks."""
    write_demo(place / "scenes", images=DRAWN, size=(375, 500))
    drawn = sorted((place / "scenes" / "images").iterdir())
    tags = dict(line.split(",") for line in (place / "scenes" / "tags.csv").read_text().split()[1:])
    root, run = place / "photos", place / "run"
    (root / "images").mkdir(parents=True)
    (run / "masks").mkdir(parents=True)
    rows, quality = [["image", "tags"]], [HEADER]
    for n in range(count):
        source = drawn[n % DRAWN]
        name = f"p{n:06d}"
        os.symlink(source, root / "images" / f"{name}{source.suffix}")
        os.symlink(place / "scenes" / "masks" / f"{source.stem}.png", run / "masks" / f"{name}.png")
        rows.append([f"{name}{source.suffix}", tags.get(source.name, tags.get(source.stem, ""))])
        row = dict.fromkeys(HEADER, "") | {"photo": name, "split": "train", "doubt": f"{n * 7919 % 10000 / 10000:.4f}"}
        quality.append([row[name] for name in HEADER])
    write_text(root / "tags.csv", csv_text(rows))
    write_text(run / "quality.csv", csv_text(quality))
    config = load_config({"data": {"root": str(root), "val_share": 0.0}, "encoder": {"weights": "none"}})
    collection = open_data(config.data)
    write_text(run / "config.yaml", dump_yaml(config))
    write_json(run / "fingerprint.json", {"unreadable": [], "bad_masks": []})
    frozen = {"format": FORMAT, "classes": collection.classes, "splits": collection.splits}
    write_json(run / "data.json", frozen | {"digest": split_digest(collection)})
    return run


def ask(address: str, pid: int, count: int) -> None:
    """Time a visit: the page, the first photos, the last ones, a filter, thumbnails."""
    base = address.partition("?")[0]
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(path: str) -> bytes:
        with opener.open(path if path.startswith("http") else base + path, timeout=60) as answer:
            return answer.read()

    def timed(what: str, *paths: str) -> bytes:
        began = time.perf_counter()
        found = [get(path) for path in paths]
        print(f"{time.perf_counter() - began:.2f} s: {what}; {memory(pid):.0f} MB")
        return found[-1]

    timed("the page", address)
    timed("what it shows", "api/run")
    first = json.loads(timed("the first 100 photos, the most doubtful first", "api/photos?limit=100&sort=doubt"))
    assert first["total"] == count
    timed("24 thumbnails, made", *(f"thumb/{row['n']}" for row in first["rows"][:24]))
    timed("24 thumbnails, kept", *(f"thumb/{row['n']}" for row in first["rows"][:24]))
    timed("the last 100 photos", f"api/photos?limit=100&offset={count - 100}&sort=doubt")
    timed("the photos with a tag", "api/photos?limit=100&tag=1&sort=doubt")
    timed("the photos by name", "api/photos?limit=100&text=99")


def memory(pid: int) -> float:
    """10^6 bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
