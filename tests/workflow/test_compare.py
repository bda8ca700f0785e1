"""``compare``: which photos and pictures stand side by side, and what stands under them."""

from __future__ import annotations

import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tagmask.config import load_config, merge
from tagmask.data import Item, read_image, read_mask, tag_vector, write_demo, write_mask
from tagmask.errors import ConfigError, DataError
from tagmask.files import read_json, write_json
from tagmask.label import Look
from tagmask.label.overlay import heat, overlay, resized
from tagmask.workflow import Run, compare, train
from tests.workflow.conftest import BASE

COMPARE = import_module("tagmask.workflow.compare")
SHARES = ("iou", "precision", "recall")


@pytest.fixture
def runs(classifier: Path, tmp_path: Path) -> list[Path]:
    """Two runs of the same network: masks/ of the first hold the truth, of the second it is shifted by 8 pixels."""
    found = [Path(shutil.copytree(classifier, tmp_path / name)) for name in ("one", "two")]
    for item in Run(found[0]).collection.items:
        truth = read_mask(item.mask or "", 9)
        write_mask(found[0] / "masks" / f"{item.id}.png", truth)
        write_mask(found[1] / "masks" / f"{item.id}.png", truth.roll(8, 1))
    return found


def truth_of(run: Path, id: str) -> np.ndarray:
    item = Run(run).collection.item(id)
    return read_mask(item.mask or "", 9).numpy()


def by_hand(found: np.ndarray, truth: np.ndarray, only: int | None = None) -> dict[str, float | None]:
    """IoU, precision and recall from the definition, class by class, means over the classes that have one."""
    values: dict[str, list[float]] = {name: [] for name in SHARES}
    known = (truth != 255) & (found != 255)
    for k in range(1, 10) if only is None else [only]:
        hit = int(((found == k) & (truth == k) & known).sum())
        mine, true = int(((found == k) & known).sum()), int(((truth == k) & known).sum())
        for name, whole in zip(SHARES, (mine + true - hit, mine, true)):
            if whole:
                values[name].append(hit / whole)
    return {name: sum(shares) / len(shares) if shares else None for name, shares in values.items()}


def look_at(run: Run, item: Item) -> Look:
    return Look(run.inference, read_image(item.image), tag_vector(item.tags or (), len(run.collection.classes)))


def pictures_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the next comparison hands to the file's writer: rows, legend, notes."""
    taken: list[Any] = []
    monkeypatch.setattr(COMPARE, "write_grid", lambda path, *parts: taken.extend(parts))
    return taken


def test_masks_stand_beside_the_truth_with_their_scores(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    id = Run(runs[0]).collection.splits["val"][0]
    taken = pictures_of(monkeypatch)
    (photo,) = compare(runs, "a.png", photos=[id])["photos"]
    truth = truth_of(runs[0], id)
    first, second = photo["pictures"]
    assert (first["run"], first["what"], first["setting"]) == ("one", "masks", None)
    assert [first[name] for name in SHARES] == [1, 1, 1]
    wanted = by_hand(np.roll(truth, 8, 1), truth)
    assert second["run"] == "two" and [second[n] for n in SHARES] == pytest.approx([wanted[n] for n in SHARES])
    (row,), legend, notes = taken
    assert [picture.title for picture in row] == [id, "truth", "one: masks", "two: masks"]
    assert row[0].under == ", ".join(photo["tags"]) and row[2].under == "IoU 100.0  precision 100.0  recall 100.0"
    small = resized(read_image(Run(runs[0]).collection.item(id).image).permute(1, 2, 0).numpy(), (256, 320))
    assert np.array_equal(row[3].pixels, overlay(small, resized(np.roll(truth, 8, 1), (256, 320), labels=True)))
    classes = Run(runs[0]).collection.classes
    assert {name for label, name in legend if label != 255} == {classes[k - 1] for k in {*truth.flat} - {0, 255}}
    assert any("IoU, precision and recall" in note for note in notes)


def test_masks_that_are_not_there_are_made(runs: list[Path]) -> None:
    run = Run(runs[0])
    item = run.collection.split("val")[0]
    shutil.rmtree(runs[0] / "masks")
    (photo,) = compare(runs[:1], runs[0] / "a.png", photos=[item.id])["photos"]
    wanted = by_hand(look_at(run, item).mask[0].numpy(), truth_of(runs[0], item.id))
    assert [photo["pictures"][0][n] for n in SHARES] == pytest.approx([wanted[n] for n in SHARES])
    assert not (runs[0] / "masks").exists()


def test_settings_take_no_masks_of_other_settings(runs: list[Path]) -> None:
    item = Run(runs[0]).collection.split("val")[0]
    settings = ["label.refine=none", "label.threshold=0.9"]
    (photo,) = compare(runs[:1], runs[0] / "a.png", photos=[item.id], overrides=settings)["photos"]
    wanted = by_hand(look_at(Run(runs[0]).using(settings), item).mask[0].numpy(), truth_of(runs[0], item.id))
    assert [photo["pictures"][0][n] for n in SHARES] == pytest.approx([wanted[n] for n in SHARES])


def test_scales_are_columns_and_runs_are_rows(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(runs[0])
    item = run.collection.split("val")[0]
    taken = pictures_of(monkeypatch)
    vary = "label.cam_scales=[0.5],[1, 2]"
    (photo,) = compare(runs, "a.html", ["cam", "refined"], vary, [item.id])["photos"]
    titles = [[None if p is None else p.title for p in row] for row in taken[0]]
    assert titles[1] == [None, None, *(title.replace("one", "two") for title in titles[0][2:])]
    assert titles[0][2:] == [
        f"one: {kind}, cam_scales {scales}" for kind in ("cam", "refined") for scales in ("[0.5]", "[1, 2]")
    ]
    for n, scales in enumerate(("[0.5]", "[1, 2]")):
        look = look_at(run.using([f"label.cam_scales={scales}"]), item)
        cams = F.interpolate(look.cams[None], size=(64, 80), mode="bilinear", align_corners=False)[0]
        labels = torch.where(cams.amax(0) > 0.3, cams.argmax(0) + 1, 0).numpy()
        for found, wanted in (
            (photo["pictures"][n], by_hand(labels, truth_of(runs[0], item.id))),
            (photo["pictures"][2 + n], by_hand(look.refined_labels.numpy(), truth_of(runs[0], item.id))),
        ):
            assert found["setting"] == f"label.cam_scales={scales}"
            assert [found[name] for name in SHARES] == pytest.approx([wanted[name] for name in SHARES])
        small = resized(look.photo.permute(1, 2, 0).numpy(), (256, 320))
        cam = resized(look.cams.amax(0).numpy(), (256, 320))
        assert np.array_equal(taken[0][0][2 + n].pixels, heat(small, cam))
    assert any("label.threshold: one 0.3, two 0.3" in note for note in taken[2])


def test_one_class_alone(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Run(runs[0]).collection
    item = next(item for item in collection.items if len(item.tags or ()) > 1)
    tag = (item.tags or ())[1]
    taken = pictures_of(monkeypatch)
    (photo,) = compare(runs, "a.png", ["masks"], photos=[item.id], class_name=collection.classes[tag])["photos"]
    truth = truth_of(runs[0], item.id)
    wanted = by_hand(np.roll(truth, 8, 1), truth, only=tag + 1)
    assert [photo["pictures"][1][n] for n in SHARES] == pytest.approx([wanted[n] for n in SHARES])
    assert [name for label, name in taken[1] if label != 255] == [collection.classes[tag]]


def test_photos_on_which_runs_differ_most_are_chosen(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(COMPARE, "PHOTOS", 2)
    items = [item for item in Run(runs[0]).collection.split("train") if item.tags]  # not those that show nothing
    for n, item in enumerate(items):  # the later, the more differ
        labels = read_mask(runs[0] / "masks" / f"{item.id}.png", 9)
        labels[:n] = torch.where(labels[:n] == 1, 2, 1)
        write_mask(runs[1] / "masks" / f"{item.id}.png", labels)
    found = compare(runs, runs[0] / "a.png", split="train")
    assert [photo["id"] for photo in found["photos"]] == [items[-1].id, items[-2].id]
    assert f"The 2 of {len(items)} photos of 'train'" in found["chosen"]
    single = compare(runs[:1], runs[0] / "a.png", split="train")
    assert [photo["id"] for photo in single["photos"]] == [items[0].id, items[-(-len(items) // 2)].id]
    assert compare(runs, runs[0] / "a.png") == compare(runs, runs[0] / "a.png"), "the same each time"


def test_photos_are_named_by_ids_and_lists(runs: list[Path], tmp_path: Path) -> None:
    items = Run(runs[0]).collection.items
    (tmp_path / "list.txt").write_text(f"{items[2].image.name}\n{items[0].id}\n", encoding="utf-8")
    found = compare(runs, runs[0] / "a.html", photos=[items[2].id, items[4].id, tmp_path / "list.txt"])
    assert [photo["id"] for photo in found["photos"]] == [items[2].id, items[4].id, items[0].id]


def test_the_last_segmenter_is_shown(staged: Path, tmp_path: Path) -> None:
    last = Run(staged).last
    item = last.collection.split("val")[0]
    (photo,) = compare([staged], tmp_path / "a.png", ["segmenter"], photos=[item.id])["photos"]
    wanted = by_hand(look_at(last, item).prediction[0].numpy(), truth_of(staged, item.id))
    assert [photo["pictures"][0][n] for n in SHARES] == pytest.approx([wanted[n] for n in SHARES])


def test_runs_are_named_by_as_many_folders_as_tell_them_apart() -> None:
    short = COMPARE._short
    assert short([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert short([Path("/t/tscd/seed0"), Path("/t/cosa/seed0")]) == ["tscd/seed0", "cosa/seed0"]
    assert short([Path("/a/x/seed0"), Path("/b/x/seed0")]) == ["a/x/seed0", "b/x/seed0"]
    assert short([Path("/a/one"), Path("/a/one")]) == ["one", "one"]


def test_unlike_runs_are_refused_by_both_names(runs: list[Path], scenes: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(scenes, tmp_path / "other"))
    one, two = (re.escape(str(run)) for run in runs)

    def changed(data: dict[str, Any]) -> Run:
        return Run(runs[1], load_config(merge(Run(runs[1]).config.model_dump(mode="json"), {"data": data})))

    with pytest.raises(DataError, match=f"{two}: its photos.*{one}.*'more'"):
        (other / "images" / "scene_0000.png").rename(other / "images" / "more.png")
        (other / "tags.csv").write_text((other / "tags.csv").read_text().replace("scene_0000", "more"))
        (other / "masks" / "scene_0000.png").rename(other / "masks" / "more.png")
        frozen = (runs[1] / "data.json").read_text()
        (runs[1] / "data.json").write_text(frozen.replace("scene_0000", "more"))
        compare([runs[0], changed({"root": str(other)})], tmp_path / "a.png")
    (runs[1] / "data.json").write_text(frozen)
    shutil.rmtree(other)
    write_demo(other, images=8, size=(64, 80), seed=4)
    shutil.copy(scenes / "tags.csv", other)
    with pytest.raises(DataError, match=f"{two}: its photo 'scene_.*{one}"):
        compare([runs[0], changed({"root": str(other)})], tmp_path / "a.png")
    classes = read_json(runs[1] / "data.json")["classes"]
    write_json(runs[1] / "data.json", read_json(runs[1] / "data.json") | {"classes": classes[::-1]})
    with pytest.raises(DataError, match=f"{two}: its classes.*{one}"):
        compare([runs[0], changed({"classes": classes[::-1]})], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_photos_that_trained_one_run_alone_are_told(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = read_json(runs[1] / "data.json")
    held = frozen["splits"]["val"][0]
    frozen["splits"] |= {"train": [*frozen["splits"]["train"], held], "val": frozen["splits"]["test"]}
    write_json(runs[1] / "data.json", frozen)
    taken = pictures_of(monkeypatch)
    compare(runs, "a.png", photos=[held])
    assert any(held in note and "trained two" in note for note in taken[2])
    compare(runs, "a.png", photos=[frozen["splits"]["train"][0]])
    assert not any("trained" in note for note in taken[5])


def test_photos_without_tags_or_truth(scenes: Path, tmp_path: Path) -> None:
    data = {"root": str(scenes / "images"), "tags": str(tmp_path / "tags.csv")}
    lines = (scenes / "tags.csv").read_text().splitlines()
    (tmp_path / "tags.csv").write_text("\n".join(lines[:-1]) + "\n")
    bare = Path(lines[-1].split(",")[0]).stem
    train(load_config(BASE, {"data": data}), tmp_path / "run")
    (photo,) = compare([tmp_path / "run"], tmp_path / "a.png", ["segmenter"], photos=[bare])["photos"]
    assert photo["tags"] is None and [photo["pictures"][0][name] for name in SHARES] == [None] * 3
    with pytest.raises(DataError, match=f"'{bare}' has no tags.*--what segmenter"):
        compare([tmp_path / "run"], tmp_path / "a.png", ["cam"], photos=[bare])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"out": "a.jpg"}, "--out"),
        ({"what": ["seeds"]}, "'seeds'.*--what"),
        ({"class_name": "nonsense"}, "'nonsense'.*--class"),
        ({"vary": "label.refine"}, "--vary label.refine"),
        ({"vary": "train.lr=1,2"}, r"train\.lr"),
        ({"vary": "label.refin=none,par"}, "label.refin"),
        ({"photos": ["scene_9999"]}, "scene_9999"),
        ({"split": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_said(classifier: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        compare([classifier], **({"out": tmp_path / "a.png"} | options))
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("method, what", [("supervised", "cam"), ("seam", "segmenter")])
def test_what_a_method_does_not_have_is_said(scenes: Path, tmp_path: Path, method: str, what: str) -> None:
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "masks": "masks"}
    base = {key: value for key, value in BASE.items() if key != "method"}
    train(load_config(base, {"data": data, "method": {"name": method}}), tmp_path / "run")
    with pytest.raises(ConfigError, match=f"'{method}' has no"):
        compare([tmp_path / "run"], tmp_path / "a.png", [what])
