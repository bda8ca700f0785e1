"""Tar shards and URIs: the same photos give the same batches, fingerprint and masks as in a folder; damage is named."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image

from tagmask.config import DataConfig, ViewConfig
from tagmask.data import Collection, TrainLoader, TrainViews, fingerprint, open_data, read_image
from tagmask.data import shards as shards_file
from tagmask.data.photos import photo_items
from tagmask.data.pixels import read_mask
from tagmask.data.shards import expand, find_shards
from tagmask.data.stored import Stored
from tagmask.errors import DataError

Members = Sequence[tuple[str, bytes]]


def write_shard(path: Path, members: Members, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((8 + seed, 9), 60).save(file, "PNG")
    return file.getvalue()


def sample(key: str, tags: Any = ("a",), seed: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(seed)), (f"{key}.json", json.dumps({"tags": tags}).encode())]


@pytest.fixture
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos of ``photos`` with their masks, in three shards and in another order."""
    folder = tmp_path_factory.mktemp("packed")
    tags = dict(line.split(",") for line in (photos / "tags.csv").read_text().splitlines()[1:])
    members: list[list[tuple[str, bytes]]] = [[], [], []]
    for i in (7, 2, 0, 11, 5, 9, 1, 10, 4, 3, 8, 6):
        name = f"p{i:02d}.png"
        part = members[i % 3]
        part.append((name, (photos / "images" / name).read_bytes()))
        if name in tags:
            listed = tags[name].split(";") if tags[name] else []
            part.append((f"p{i:02d}.json", json.dumps({"tags": listed, "url": "x"}).encode()))
        part.append((f"p{i:02d}.mask.png", (photos / "masks" / name).read_bytes()))
    for i, part in enumerate(members):
        write_shard(folder / f"train-{i:03d}.tar", part)
    return folder


def opened(**values: Any) -> Collection:
    return open_data(DataConfig.model_validate({"val_share": 0.2, **values}))


def batches(collection: Collection, workers: int) -> list[Any]:
    config = ViewConfig.model_validate({"crop": 16, "local": {"size": 16}, "jitter": (0.2, 0.2, 0.2, 0.1)})
    views = TrainViews(config, frozenset(["strong"]))
    items = collection.split("train")
    return list(TrainLoader(items, 3, views, 4, 5, 7, workers, masks=True))


def test_shards_are_as_the_folder_of_the_same_photos(photos: Path, packed: Path) -> None:
    folder, shards = opened(root=photos), opened(root=packed)
    assert shards.source == "shards" and shards.classes == folder.classes and shards.splits == folder.splits
    assert [(i.id, i.tags) for i in shards.items] == [(i.id, i.tags) for i in folder.items]
    for one, other in zip(batches(folder, 0), batches(shards, 2)):
        assert one.ids == other.ids
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
        assert torch.equal(one.views["strong"].images, other.views["strong"].images)
    first, second = fingerprint(folder), fingerprint(shards)
    same = {"digest", "classes", "counts", "splits", "sizes", "tags", "cooccurrence", "masks", "unlabelled", "warnings"}
    assert {key: first[key] for key in same} == {key: second[key] for key in same}
    assert first["counts"]["images"] == 12 and first["masks"]["values"] and not second["problems"]


def test_a_path_in_a_shard_opens_itself_in_any_process(packed: Path) -> None:
    image = opened(root=packed).items[0].image
    assert isinstance(image, Stored) and str(image) == f"{packed}/train-000.tar/p00.png" and image.name == "p00.png"
    again = pickle.loads(pickle.dumps(image))
    assert again == image and again.read_bytes() == image.read_bytes() and again.stat().st_size == image.size
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        read_image(image)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="rb"):
        image.open("w")
    assert pickle.loads(pickle.dumps(image.parent)) == packed / "train-000.tar" and not image.parent.is_file()


def test_the_index_is_built_once_and_anew_for_another_content(
    packed: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = shards_file.build_index
    monkeypatch.setattr(shards_file, "build_index", lambda file, place: built.append(place) or build(file, place))
    first = opened(root=packed)
    assert len(built) == 3
    moved = packed.rename(packed.with_name(f"{packed.name}-moved"))
    assert [i.id for i in opened(root=moved).items] == [i.id for i in first.items] and len(built) == 3
    for path in (own_cache / "shards").iterdir():
        path.write_text("{")
    opened(root=moved)
    assert len(built) == 6, "a damaged index is built again"
    image = opened(root=moved).items[0].image
    write_shard(moved / "train-000.tar", [*sample("z"), *sample("p00")])
    with pytest.raises(DataError, match=r"train-000\.tar/p00\.png: is no longer where it was"):
        read_image(image)
    assert "z" in {i.id for i in opened(root=moved).items} and len(built) == 7
    one, other = b"a" * 1000, b"b" * 1000
    write_shard(moved / "same.tar", [("x.png", one), ("y.png", other)])
    (image,) = (i.image for i in opened(root=moved).items if i.id == "x")
    write_shard(moved / "same.tar", [("y.png", other), ("x.png", one)])
    with pytest.raises(DataError, match=r"x\.png: is no longer where it was"):
        image.open()


def test_a_photo_that_was_decoded_once_is_not_decoded_again(
    photos: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "images" / "p00.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    first = fingerprint(opened(root=photos))
    decoded: list[str] = []
    inner = read_image
    monkeypatch.setattr(
        import_module("tagmask.data.fingerprint"),
        "read_image",
        lambda path, **more: decoded.append(path.name) or inner(path, **more),
    )
    assert fingerprint(opened(root=photos)) == first and decoded == ["p00.png"], "what is damaged is looked at again"
    fingerprint(opened(root=packed))
    assert decoded == ["p00.png", "p00.png"], "known by content, wherever it lies"


def test_tags_as_classes_numbers_and_in_a_table(tmp_path: Path) -> None:
    members = [("x/1.png", png()), ("x/1.cls", b"1\n"), ("x/2.png", png(1)), ("x/2.cls", b"0"), ("x/2.txt", b"a dog")]
    write_shard(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match="the tags are numbers"):
        opened(root=tmp_path)
    found = opened(root=tmp_path, classes=["dog", "cat"])
    assert [(i.id, i.tags) for i in found.items] == [("1", (1,)), ("2", (0,))]
    assert "1 .txt" in found.problems[0].what
    (tmp_path / "tags.csv").write_text("image,tags\n1.png,red;blue\n")
    found = opened(root=tmp_path)
    assert found.classes == ["blue", "red"] and [i.tags for i in found.items] == [(0, 1), None]


def test_splits_and_keys_that_are_in_two_shards(tmp_path: Path) -> None:
    for name, role in (("a", "train"), ("b", "val")):
        text = json.dumps({"tags": ["x"], "split": role}).encode()
        write_shard(tmp_path / "set" / f"{name}.tar", [("1.png", png()), ("1.json", text)])
    found = opened(shards=str(tmp_path / "set" / "*.tar"))
    assert found.splits == {"train": ["a.tar/1"], "val": ["b.tar/1"]}
    items, rest = photo_items([str(tmp_path / "set" / "a.tar")])
    assert [i.id for i in items] == ["1"] and not rest.problems


LONG = "f" * 120 + "/é"
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_tar(tmp_path: Path, form: int) -> None:
    write_shard(tmp_path / "a.tar", [*sample(LONG), *sample("./b", ["c"], 3)], form)
    found = opened(root=tmp_path)
    assert [i.id for i in found.items] == ["b", "é"] and not found.problems
    assert read_image(found.items[0].image).shape == (3, 9, 11)


def test_joined_shards_and_hidden_members(tmp_path: Path) -> None:
    one = write_shard(tmp_path / "one", [*sample("1"), ("._1.png", b"mac")]).read_bytes()
    two = write_shard(tmp_path / "two", sample("2")).read_bytes()
    (tmp_path / "both.tar").write_bytes(one + two)
    found = opened(root=tmp_path)
    assert [i.id for i in found.items] == ["1", "2"] and not found.problems


def damaged(tmp_path: Path, change: Callable[[bytearray], bytes | bytearray]) -> tuple[list[str], dict[str, Any]]:
    """Ids of a shard of four photos that was changed, and its fingerprint."""
    content = write_shard(tmp_path / "bad.tar", [m for i in range(4) for m in sample(str(i), seed=i)]).read_bytes()
    (tmp_path / "bad.tar").write_bytes(change(bytearray(content)))
    write_shard(tmp_path / "good.tar", sample("good"))
    found = opened(root=tmp_path)
    return [i.id for i in found.items], fingerprint(found)


def spoil(content: bytearray, name: str, after: int = 0) -> bytearray:
    place = content.index(name.encode() + b"\0") + after
    content[place : place + 40] = b"\xff" * 40
    return content


def test_damaged_shards_and_members_are_named(tmp_path: Path) -> None:
    bad = f"{tmp_path}/bad.tar"
    ids, found = damaged(tmp_path / "", lambda c: spoil(c, "1.png"))
    assert ids == ["0", "2", "3", "good"], "the rest is found again after a damaged header"
    said = {(p["path"], p["what"]) for p in found["problems"]}
    assert any(
        path == bad and "after '0.json', are damaged" in what and "Write the shard again" in what for path, what in said
    )
    assert (bad, "1 keys have no photo ('1' is the first): left out") in said

    ids, found = damaged(tmp_path, lambda c: spoil(c, "2.png", 512 + 30))
    assert [e["path"] for e in found["unreadable"]] == [f"{bad}/2.png"] and len(ids) == 5

    ids, found = damaged(tmp_path, lambda c: c[: c.index(b"2.png\0") + 600])
    assert ids == ["0", "1", "good"]
    said = {(p["path"], p["what"]) for p in found["problems"]}
    assert (f"{bad}/2.png", "left out: cut off with the shard. Write the shard again, or fetch it again.") in said
    assert any("was cut off there" in what for _, what in said)

    ids, found = damaged(tmp_path, lambda c: spoil(c, "3.json", 512))
    assert [e["path"] for e in found["problems"]] == [f"{bad}/3.json"] and found["unlabelled"] == ["3"]

    for change, what in [
        (lambda c: b"\x1f\x8b" + c, "gunzip"),
        (lambda c: b"", "no tar file"),
        (lambda c: b"x" * 5000, "no tar file"),
    ]:
        ids, found = damaged(tmp_path, change)
        assert ids == ["good"]
        assert [p["path"] for p in found["problems"]] == [bad] and what in found["problems"][0]["what"]


def test_samples_that_are_not_right(tmp_path: Path) -> None:
    link = tarfile.TarInfo("7.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = [
        *sample("1"), ("1.jpg", png(1)), ("2.json", b"{}"), ("../3.png", png(2)), ("4.x.png", png(3)),
        ("5.png", png()), ("5.json", b'{"tags": [3]}'), ("6.svg", b"<svg/>"),
    ]  # fmt: skip
    write_shard(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.addfile(link)
    found = opened(root=tmp_path)
    assert [(i.id, i.tags) for i in found.items] == [("1", (0,)), ("5", None)]
    said = {p.path.removeprefix(f"{tmp_path}/a.tar").lstrip("/"): p.what for p in found.problems if p.path}
    assert "1.png is the photo of this key" in said["1.jpg"] and "leads out of its folder" in said["../3.png"]
    assert "Rename it" in said["4.x.png"] and "tags cannot be read" in said["5.png"] and ".svg" in said["6.svg"]
    assert "link" in said["7.png"]


def test_no_shard_no_photo_no_tag(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such shard"):
        opened(shards=str(tmp_path / "x-{00..02}.tar"))
    write_shard(tmp_path / "x.tar", [("1.png", png()), ("1.txt", b"a dog in the garden")])
    with pytest.raises(DataError, match="Captions"):
        opened(root=tmp_path)
    write_shard(tmp_path / "x.tar", [("1.json", b"{}")])
    with pytest.raises(DataError, match="no photo is in 1 shards"):
        opened(root=tmp_path)
    assert list(expand("a-{08..10}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar"]


def test_shards_and_photos_at_uris(photos: Path, packed: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in packed.iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    here, there = opened(root=packed), opened(shards="memory://bucket/train-{000..002}.tar")
    assert [(i.id, i.tags) for i in there.items] == [(i.id, i.tags) for i in here.items]
    assert str(there.items[0].image) == "memory://bucket/train-000.tar/p00.png"
    for one, other in zip(batches(here, 0), batches(there, 0)):
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
    first, second = fingerprint(here), fingerprint(there)
    assert first["digest"] == second["digest"] and first["counts"] == second["counts"]

    for path in (photos / "images").iterdir():
        memory.pipe(f"/plain/{path.name}", path.read_bytes())
    table = opened(root=photos, images="memory://plain", masks=photos / "masks")
    assert fingerprint(table)["digest"] == fingerprint(opened(root=photos))["digest"]
    mask = there.items[1].mask
    assert mask is not None and read_mask(mask, 3).unique().tolist() == [1]
    items, _ = photo_items(["memory://plain/p0*"])
    assert len(items) == 10 and torch.equal(read_image(items[3].image), read_image(photos / "images" / "p03.png"))
    memory.rm("/plain/p03.png")
    with pytest.raises(DataError, match=r"memory://plain/p03\.png: is not there"):
        read_image(items[3].image)


def test_uris_that_cannot_be_opened() -> None:
    with pytest.raises(DataError, match=r"nowhere://x/a\.tar: cannot be opened .*tagmask\[remote\]"):
        opened(shards="nowhere://x/a.tar")
    with pytest.raises(DataError, match=r"memory://none/a\.tar: no photo is in 1 shards .*is not there"):
        opened(shards="memory://none/a.tar")


@pytest.mark.parametrize("before", ["./", "", ".//"])
def test_ids_do_not_depend_on_how_a_shard_is_named(packed: Path, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(packed)
    items, _ = photo_items([f"{before}train-000.tar"])
    assert {item.id for item in items} <= {f"p{i:02d}" for i in range(12)} and items
    assert all(read_image(item.image).ndim == 3 for item in items)


def test_a_range_that_is_far_too_wide_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="no such shard"):
        find_shards("nothing-{000000000000..999999999999}.tar")
