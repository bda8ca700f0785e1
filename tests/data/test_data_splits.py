from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tagmask.config import DataConfig
from tagmask.data import Collection, open_data
from tagmask.data.splits import hold_out
from tagmask.errors import DataError


def ids(collection: Collection, name: str) -> list[str]:
    return [item.id for item in collection.split(name)]


def test_a_seeded_share_is_held_out(photos: Path) -> None:
    config = DataConfig(root=photos, val_share=0.3)
    first, again, other = (open_data(config, seed) for seed in (0, 0, 1))
    assert ids(first, "val") == ids(again, "val") != ids(other, "val")
    assert len(ids(first, "val")) == 3 and len(ids(first, "train")) == 7
    assert sorted(ids(first, "train") + ids(first, "val")) == [f"p{i:02d}" for i in range(10)]
    assert len(ids(first, "all")) == 12


def test_hold_out_hardly_moves_when_images_are_added() -> None:
    some = [str(i) for i in range(100)]
    before, after = set(hold_out(some, 0.2, 0)), set(hold_out([*some, "new"], 0.2, 0))
    assert len(before) == 20 and len(before - after) <= 1
    assert len(hold_out(["a", "b"], 0.01, 0)) == 1 and len(hold_out(["a", "b"], 0.99, 0)) == 1


def test_no_share_no_val(photos: Path) -> None:
    collection = open_data(DataConfig(root=photos, val_share=0))
    assert list(collection.splits) == ["train"]
    with pytest.raises(DataError, match="'val'.*train, all"):
        collection.split("val")


def test_lists_by_path_and_by_name(photos: Path) -> None:
    (photos / "mine.txt").write_text("images/p00.png\np01.png /masks/p01.png\np02 1\n\np02\np11\nnone\n")
    (photos / "tested.txt").write_text("p01.png\np04\n")
    (photos / "splits").mkdir()
    (photos / "splits" / "held.txt").write_text("p02\np03\n")
    collection = open_data(DataConfig(root=photos, train=str(photos / "mine.txt"), val="held", test="tested.txt"))
    assert ids(collection, "val") == ["p02", "p03"] and ids(collection, "test") == ["p01", "p04"]
    assert [p.what for p in collection.problems if p.path == "none"] == ["mine.txt, line 7: no such image"]
    assert ids(collection, "train") == ["p00"]
    assert ids(open_data(DataConfig(root=photos, train="mine", test="mine")), "train") == []


def test_train_list_loses_held_out_and_unlabelled(photos: Path) -> None:
    (photos / "train.txt").write_text("p00\np01\np02\np11\n")
    (photos / "val.txt").write_text("p01\np10\n")
    collection = open_data(DataConfig(root=photos))
    assert ids(collection, "train") == ["p00", "p02"] and ids(collection, "val") == ["p01", "p10"]
    assert {(p.path, p.what.split(":")[0]) for p in collection.problems} == {
        ("p01", "listed for train and val"),
        ("p11", "listed for train but unlabelled"),
    }


def test_the_held_out_share_is_of_the_training_images(photos: Path) -> None:
    (photos / "tested.txt").write_text("\n".join(f"p{i:02d}" for i in range(6)))
    for seed in range(5):
        collection = open_data(DataConfig(root=photos, test="tested", val_share=0.5), seed)
        assert len(collection.splits["val"]) == len(collection.splits["train"]) == 2
        assert set(collection.splits["val"] + collection.splits["train"]) == {"p06", "p07", "p08", "p09"}


def test_lists_that_fit_nothing(photos: Path) -> None:
    with pytest.raises(DataError, match=r"'absent'.*data\.val"):
        open_data(DataConfig(root=photos, val="absent"))
    (photos / "wrong.txt").write_text("q1\nq2\n")
    with pytest.raises(DataError, match=r"wrong\.txt.*'q1'"):
        open_data(DataConfig(root=photos, val="wrong"))


def test_collection_answers(photos: Path) -> None:
    collection = open_data(DataConfig(root=photos, val_share=0))
    assert collection.item("p03").tags == (0, 2)
    with pytest.raises(DataError, match="'p03'"):
        collection.item("p03x")
    joined = "\n".join(f"p{i:02d}" for i in range(10))
    assert collection.split_hash("train") == hashlib.sha256(joined.encode()).hexdigest()[:12]
    assert collection.split_hash("all") != collection.split_hash("train")


def test_the_only_photo_of_a_class_trains(tmp_path: Path) -> None:
    for seed in range(8):
        ids = [f"p{i}" for i in range(20)]
        tags = {id: (int(id == "p7"), 2 + int(id in ("p3", "p4"))) for id in ids}
        held = hold_out(ids, 0.9, seed, tags)
        left = [id for id in ids if id not in held]
        assert "p7" in left and {"p3", "p4"} & set(left) and len(held) == 18


def test_classes_move_the_choice_only_where_one_would_be_lost() -> None:
    ids = [f"p{i}" for i in range(50)]
    for seed in range(8):
        assert hold_out(ids, 0.1, seed, {id: (int(id[1:]) % 2,) for id in ids}) == hold_out(ids, 0.1, seed)
    assert hold_out(["a", "b"], 0.1, 0, {"a": (0,), "b": (1,)}) == hold_out(["a", "b"], 0.1, 0), (
        "one, whatever it costs"
    )
