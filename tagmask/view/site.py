"""``tagmask report --site``: the viewer as files, for any web server; to look, not to change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tagmask.errors import DataError
from tagmask.files import of_system, write_text, written
from tagmask.view.index import Index
from tagmask.view.pictures import Pictures, describe, encode, jpeg
from tagmask.workflow.opened import Run, opened

STATIC = Path(__file__).parent / "static"
"""The page: HTML, style and scripts."""


def write_site(run: Run | str | Path, out: str | Path, console: Console | None = None) -> Path:
    """Write the page, and all pictures that the viewer would show of the run, into the folder ``out``.

    Files that are there already are written anew. Photos that cannot be read are left out. Returns the path of
    index.html. Raises DataError where the disk refuses, and for a folder that holds other things.
    """
    out, index = Path(out), Index(opened(run))
    if out.is_dir() and any(out.iterdir()) and not (out / "data" / "run.json").is_file():
        raise DataError(f"{out}: holds other files; name a new folder (--site).")
    pictures = Pictures(index)
    try:
        shutil.copytree(STATIC, out, dirs_exist_ok=True)
    except OSError as error:
        raise of_system(error, out) from error
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    write_text(out / "index.html", page.replace("<html ", '<html data-static="1" ', 1))
    console = console or Console(stderr=True)
    rows = []
    for n in track(range(len(index.items)), "site", console=console, disable=not console.is_terminal):
        try:
            rows.append(_photo(pictures, n, out / "data"))
        except DataError as error:
            console.print(f"left out: {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _json(out / "data" / "photos.json", {"total": len(rows), "rows": rows})
    _json(out / "data" / "run.json", describe([pictures], editable=False) | {"photos": len(rows), "author": None})
    return out / "index.html"


def _photo(pictures: Pictures, n: int, data: Path) -> dict[str, object]:
    """Write what is shown of a photo. Returns its row."""
    photo, row = pictures.photo(n), pictures.index.row(n)
    kinds = pictures.kinds(n)
    files = {f"thumb/{n}.jpg": pictures.thumb(n), f"photo/{n}.jpg": jpeg(photo)}
    files |= {f"layer/{n}_{kind}.png": encode(pictures.layer(n, kind)) for kind in kinds}
    if pictures.has_cams:
        files |= {f"cam/{n}_{label}.png": encode(pictures.cam(n, label)) for label in pictures.index.tags(n) or ()}
    for name, content in files.items():
        with written(data / name) as part:
            part.write_bytes(content)
    height, width = photo.shape[:2]
    # Names of people are not for everybody.
    journal = [{key: value for key, value in entry.items() if key != "author"} for entry in pictures.index.entries(n)]
    about = {"width": width, "height": height, "kinds": kinds, "journal": journal}
    _json(data / f"photo/{n}.json", {**pictures.row(n), **about})
    return row


def _json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, separators=(",", ":")))
