"""The viewer's server: what it shows, takes and refuses."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.data import palette, read_mask, write_demo
from tagmask.data.review import Journal
from tagmask.errors import ConfigError, DataError
from tagmask.files import csv_text, read_json
from tagmask.workflow import Run, run
from tests.workflow.conftest import BASE

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient  # noqa: E402

from tagmask.view.index import Index  # noqa: E402
from tagmask.view.pictures import Pictures, decode, encode  # noqa: E402
from tagmask.view.server import make_app  # noqa: E402
from tagmask.view.site import write_site  # noqa: E402
from tagmask.view.spread import spread  # noqa: E402

TOKEN = "secret"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on eight scenes."""
    folder = tmp_path_factory.mktemp("view")
    write_demo(folder / "scenes", images=8, size=(64, 80), seed=3)
    data = {"root": str(folder / "scenes"), "train": "train.txt", "val": "val.txt", "test": "test.txt"}
    run([BASE, {"data": data}], {}, [], folder / "run")
    return folder / "run"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same run without a review, thumbnails of its own."""
    target = tmp_path / "run"
    target.mkdir()
    for path in made.iterdir():
        (target / path.name).symlink_to(path)
    return target


def client(*folders: Path, token: str = TOKEN) -> TestClient:
    asking = TestClient(make_app([Run(place) for place in folders], TOKEN, ["testserver"]))
    if token:
        assert asking.get(f"/?token={token}").status_code == 200
    return asking


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_nobody_else_is_answered(folder: Path) -> None:
    asking = client(folder, token="")
    for path in ("/", "/api/run", "/photo/0", "/app.js", "/?token=guess", "/%2e%2e/%2e%2e/etc/passwd"):
        answer = asking.get(path)
        assert answer.status_code == 403 and "tagmask view" in answer.json()["detail"], path
    assert asking.post("/api/review/0", json={"action": "accept"}).status_code == 403
    known = client(folder)
    for host in ("evil.example", "[", "testserver.evil.example"):
        assert known.get("/api/run", headers={"host": host}).status_code == 400, host
    assert known.get("/api/run", headers={"origin": "http://["}).status_code == 400
    assert known.get("/api/run", headers={"host": "192.0.2.7:80"}).status_code == 200, "numbers are nobody else's name"
    assert (
        known.post("/api/review/0", json={"action": "accept"}, headers={"origin": "http://evil.example"}).status_code
        == 403
    )
    assert known.post("/api/mask/0", content=b"x", headers={"content-length": str(10**9)}).status_code == 413
    assert not (folder / "review.jsonl").exists()
    assert "default-src 'self'" in known.get("/").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["/../config.yaml", "/%2e%2e/config.yaml", "/..%2f..%2fconfig.yaml", "/static/../server.py"]
)
def test_files_outside_of_the_page_are_not_served(folder: Path, path: str) -> None:
    assert client(folder).get(path).status_code == 404


def test_a_run_and_its_photos_are_described(folder: Path) -> None:
    asking, opened = client(folder), Run(folder)
    about = asking.get("/api/run").json()
    assert (
        about["classes"] == ["background", *opened.collection.classes]
        and about["photos"] == 8
        and about["runs"] == ["run"]
    )
    assert about["colours"][1] == "#{:02x}{:02x}{:02x}".format(*palette()[1])
    assert about["kinds"] == ["mask", "prediction", "refined", "truth"] and about["cams"] and about["editable"]
    rows = asking.get("/api/photos").json()["rows"]
    assert [row["id"] for row in rows] == [item.id for item in opened.collection.items]
    for row, item in zip(rows, opened.collection.items, strict=True):
        assert row["tags"] == [tag + 1 for tag in item.tags or ()] and row["version"] == 0 and row["decision"] is None
    assert asking.get("/api/photo/8").status_code == asking.get("/thumb/-1").status_code == 404


def test_photos_are_filtered_sorted_and_paged(folder: Path) -> None:
    asking, opened = client(folder), Run(folder)

    def ids(**query: object) -> list[str]:
        return [row["id"] for row in asking.get("/api/photos", params=query).json()["rows"]]  # type: ignore[arg-type]

    items = opened.collection.items
    assert ids(split="train") == [item.id for item in opened.collection.split("train")]
    assert ids(tag=1) == [item.id for item in items if 0 in (item.tags or ())] and 0 < len(ids(tag=1)) < 8
    assert ids(text=items[3].id.upper()) == [items[3].id] and ids(text="no such") == []
    assert ids(offset=2, limit=3) == [item.id for item in items[2:5]] and ids(offset=7, limit=100) == [items[7].id]
    doubts = [row["doubt"] for row in asking.get("/api/photos?sort=doubt").json()["rows"]]
    known = [doubt for doubt in doubts if doubt is not None]
    assert known == sorted(known, reverse=True) and doubts[: len(known)] == known and known
    lowest = [row["iou"] for row in asking.get("/api/photos?sort=iou").json()["rows"] if row["iou"] is not None]
    assert lowest == sorted(lowest) and lowest
    asking.post("/api/review/2", json={"action": "reject"})
    asking.post("/api/review/3", json={"action": "tags", "tags": [1]})
    asking.post("/api/review/2", json={"action": "reject"})
    assert len(Journal(folder).entries()) == 2, "rejected twice is one decision, which one undo takes back"
    assert ids(decision="rejected") == [items[2].id] and ids(decision="edited") == [items[3].id]
    assert len(ids(decision="none")) == 6 and ids(decision="accepted") == []
    assert items[3].id in ids(tag=1), "tags are those of the review"
    for wrong in ("sort=colour", "decision=maybe", "tag=cow", "tag=²"):
        answer = asking.get(f"/api/photos?{wrong}")
        assert answer.status_code == 400 and wrong.split("=")[0] in answer.json()["detail"]


def test_suspects_and_what_disagrees_are_shown(folder: Path) -> None:
    items = Run(folder).collection.items
    suspects = [["photo", "class", "tag", "score", "odds", "rows of class"]]
    suspects += [
        [items[5].id, "circle", "given", "0.1", "30", "1"],
        [items[1].id, "square", "missing", "0.9", "70", "1"],
    ]
    names = Run(folder).collection.classes
    suspects = [[row[0], names[i] if i >= 0 else row[1], *row[2:]] for row, i in zip(suspects, (-1, 0, 1), strict=True)]
    (folder / "suspects.csv").unlink(missing_ok=True)
    (folder / "suspects.csv").write_text(csv_text(suspects))
    asking = client(folder)
    rows = asking.get("/api/photos?suspect=1&sort=suspicion").json()["rows"]
    assert [(row["n"], row["suspects"]) for row in rows] == [
        (1, [{"label": 2, "tag": "missing"}]),
        (5, [{"label": 1, "tag": "given"}]),
    ]


def test_pictures_are_those_of_the_run(folder: Path) -> None:
    asking, opened = client(folder), Run(folder)
    item = opened.collection.split("train")[0]
    n = Index(opened).place[item.id]
    about = asking.get(f"/api/photo/{n}").json()
    assert (about["width"], about["height"]) == (80, 64) and set(about["kinds"]) == {
        "mask",
        "prediction",
        "refined",
        "truth",
    }
    assert picture(asking.get(f"/photo/{n}").content).shape == (64, 80, 3)
    for kind, labels in {
        "mask": read_mask(folder / "masks" / f"{item.id}.png", 99),
        "truth": read_mask(item.mask or "", 99),
    }.items():
        assert (picture(asking.get(f"/layer/{n}/{kind}").content)[..., 0] == labels.numpy()).all(), kind
    for path in (f"/layer/{n}/prediction", f"/layer/{n}/refined", f"/sure/{n}", f"/cam/{n}/1"):
        shown = picture(asking.get(path).content)
        assert shown.shape == (64, 80, 4) and (shown[..., 3] == 255).all(), path
    assert asking.get(f"/cam/{n}/99").status_code == 400 and asking.get(f"/layer/{n}/other").status_code == 422
    first = asking.get(f"/thumb/{n}").content
    kept = list((folder / ".view").rglob("*.jpg"))
    assert len(kept) == 1 and kept[0].read_bytes() == first == asking.get(f"/thumb/{n}").content


def test_large_photos_are_shown_smaller_and_corrected_at_their_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagmask.view.pictures.LARGEST", 40)
    asking = client(folder)
    assert picture(asking.get("/photo/0").content).shape == (32, 40, 3)
    labels = np.zeros((32, 40), dtype=np.uint8)
    labels[:16] = 2
    assert asking.post("/api/mask/0", content=encode(labels)).status_code == 200
    kept = Index(Run(folder)).journal.decisions()[Run(folder).collection.items[0].id].mask
    assert kept is not None
    drawn = read_mask(kept, 99)
    assert drawn.shape == (64, 80) and (drawn[:32] == 2).all() and not drawn[32:].any()
    assert (picture(asking.get("/layer/0/mask").content)[..., 0] == labels).all()


def test_decisions_go_into_the_journal_and_come_back(folder: Path) -> None:
    asking = client(folder)
    state = asking.get("/api/state").json()["version"]
    one = asking.post("/api/review/1", json={"action": "accept"}).json()
    assert (
        one["row"]["decision"] == "accept"
        and one["row"]["version"] == 1
        and asking.get("/api/state").json()["version"] > state
    )
    asking.post("/api/review/1", json={"action": "tags", "tags": [3, 1, 1]})
    labels = np.full((64, 80), 3, dtype=np.uint8)
    asking.post("/api/mask/1", content=encode(labels))
    again = client(folder)  # the server was begun anew
    about = again.get("/api/photo/1").json()
    assert (
        about["tags"] == [1, 3]
        and about["edited"]
        and [e["action"] for e in about["journal"]] == ["accept", "tags", "mask"]
    )
    assert (picture(again.get("/layer/1/mask").content)[..., 0] == 3).all()
    undone = again.post("/api/review/1", json={"action": "undo"}).json()
    assert [e["undone"] for e in undone["journal"]] == [False, False, True] and undone["row"]["tags"] == [1, 3]
    assert not (picture(again.get("/layer/1/mask").content)[..., 0] == 3).all()
    names = Run(folder).collection.classes
    entries = [json.loads(line) for line in (folder / "review.jsonl").read_text().splitlines()]
    assert [entry["action"] for entry in entries] == ["accept", "tags", "mask", "undo"]
    assert entries[1]["tags"] == [names[0], names[2]] and entries[0]["author"] and entries[0]["time"]


@pytest.mark.parametrize(
    "path,body,status",
    [
        ("review/1", {"action": "delete"}, 422),
        ("review/1", {"action": "tags", "tags": [99]}, 400),
        ("review/1", {"action": "tags", "tags": [0]}, 400),
        ("review/1", {"action": "undo"}, 400),
        ("review/99", {"action": "accept"}, 404),
        ("click/1", {"seeds": [[1, 1, 1]], "mask": "data:text/html,x"}, 400),
        ("click/1", {"seeds": [[1, 1, 300]], "mask": ""}, 422),
        ("click/1", {"seeds": [[1, 1, 1]], "mask": "data:image/png;base64,AAAA"}, 400),
        ("click/1", {"seeds": [[1, 1, 1]], "mask": "data:image/png;base64,\u00e9"}, 400),
    ],
)
def test_wrong_decisions_change_nothing(folder: Path, path: str, body: dict, status: int) -> None:
    answer = client(folder).post(f"/api/{path}", json=body)
    assert answer.status_code == status and answer.json()["detail"]
    assert not (folder / "review.jsonl").exists()


@pytest.mark.parametrize("labels", [np.zeros((10, 10)), np.full((64, 80), 200), b"no picture", b""])
def test_masks_that_do_not_fit_are_refused(folder: Path, labels: np.ndarray | bytes) -> None:
    data = labels if isinstance(labels, bytes) else encode(labels.astype(np.uint8))
    answer = client(folder).post("/api/mask/1", content=data)
    assert answer.status_code in (400, 422) and answer.json()["detail"] and not (folder / "review.jsonl").exists()


def test_values_come_through_a_png_as_they_are() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (decode(encode(values)) == values).all()


def test_a_click_fills_the_object_under_it(folder: Path) -> None:
    photo = np.full((60, 90, 3), 60, dtype=np.uint8)
    photo[20:40, 30:70] = 200
    labels = np.zeros((60, 90), dtype=np.uint8)
    labels[:5] = 255
    found = spread(photo, labels, [(50, 30, 3)])
    wanted = labels.copy()
    wanted[20:40, 30:70] = 3
    assert (found == wanted).mean() > 0.99 and (found[:5] == 255).all()
    assert (spread(photo, found, [(50, 30, 0)])[20:40, 30:70] == 0).mean() > 0.95, (
        "and a second one of the background empties it"
    )
    assert spread(photo, labels, []) is labels
    asking = client(folder)
    mask = "data:image/png;base64," + base64.b64encode(encode(np.zeros((64, 80), dtype=np.uint8))).decode()
    answer = picture(asking.post("/api/click/0", json={"seeds": [[40, 32, 2]], "mask": mask}).content)[..., 0]
    assert answer[32, 40] == 2 and set(np.unique(answer)) == {0, 2}
    assert asking.post("/api/click/0", json={"seeds": [[80, 0, 2]], "mask": mask}).status_code == 400
    assert asking.post("/api/click/0", json={"seeds": [[0, 0, 99]], "mask": mask}).status_code == 400
    unknown = "data:image/png;base64," + base64.b64encode(encode(np.full((64, 80), 99, dtype=np.uint8))).decode()
    assert asking.post("/api/click/0", json={"seeds": [[0, 0, 1]], "mask": unknown}).status_code == 400


def test_two_runs_of_the_same_photos_are_compared(folder: Path, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    other.mkdir()
    for path in made.iterdir():
        (other / path.name).symlink_to(path)
    asking = client(folder, other)
    assert asking.get("/api/run").json()["runs"] == ["run", "second"]
    assert asking.get("/layer/0/mask?run=1").content == asking.get("/layer/0/mask").content
    assert asking.get("/thumb/0?run=2").status_code == 404


def test_networks_are_used_only_where_they_are_asked_for(folder: Path) -> None:
    pictures = Pictures(Index(Run(folder)))
    pictures.thumb(0), pictures.layer(0, "truth"), pictures.kinds(0)
    assert "method" not in pictures.run.__dict__
    assert pictures.sure(0).mean() > 255 / 9 and "method" in pictures.run.__dict__, "of nine labels the largest"


def test_the_site_has_what_the_server_shows(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    words = ["report", str(folder), "--site", str(out), "--json"]
    refused = CliRunner().invoke(app, [*words[:-1], "--split", "val"])
    assert isinstance(refused.exception, ConfigError) and "leave --split and --photos away" in str(refused.exception)
    assert json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout) == {
        "report": str(out / "index.html")
    }
    asking = client(folder)
    assert read_json(out / "data" / "photos.json") == asking.get("/api/photos").json()
    about = asking.get("/api/run").json()
    assert read_json(out / "data" / "run.json") == about | {"editable": False, "author": None}
    for n in (0, 7):
        shown = asking.get(f"/api/photo/{n}").json()
        assert read_json(out / "data" / "photo" / f"{n}.json") == shown
        for address, name in [
            (f"/thumb/{n}", f"thumb/{n}.jpg"),
            (f"/photo/{n}", f"photo/{n}.jpg"),
            *((f"/layer/{n}/{kind}", f"layer/{n}_{kind}.png") for kind in shown["kinds"]),
            *((f"/cam/{n}/{label}", f"cam/{n}_{label}.png") for label in shown["tags"]),
        ]:
            assert (out / "data" / name).read_bytes() == asking.get(address).content, name
    page = (out / "index.html").read_text()
    assert page.count("data-static") == 1 and (out / "app.js").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(DataError, match="holds other files"):
        write_site(folder, tmp_path / "other")
    write_site(folder, out)  # anew


@pytest.mark.parametrize(
    "name,text", [("suspects.csv", "a,b\nc,d\n"), ("suggested.csv", "p,w,d,n\nscene_0001,much,0,0\n")]
)
def test_tables_that_were_changed_are_named(folder: Path, name: str, text: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}.*Delete the file"):
        Index(Run(folder))


def test_pixels_that_the_page_does_not_change_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagmask.view.pictures.LARGEST", 40)
    pictures = Pictures(Index(Run(folder)))
    n = next(n for n in range(8) if pictures.mask_file(n))
    before = np.zeros((64, 80), dtype=np.uint8)
    before[1::2] = 3  # stripes that the smaller map cannot show
    pictures.index.journal.add(pictures.index.items[n].id, "mask", labels=before)
    pictures.index.refresh()
    shown = pictures.layer(n, "mask").copy()
    shown[:4] = 2
    found = pictures.corrected(n, encode(shown))
    assert (found[:8] == 2).all() and (found[9:] == before[9:]).all()
    assert pictures.row(n)["found"] == [3]
