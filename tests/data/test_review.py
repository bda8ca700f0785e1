"""The journal of a review, and a collection with its decisions."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from tagmask.config import load_config
from tagmask.data import Collection, Item, open_data, write_demo
from tagmask.data.pixels import raw_mask
from tagmask.data.review import Decision, Journal, decided, decisions_of, reviewed
from tagmask.errors import DataError


def test_the_last_decision_holds_and_an_undo_takes_back_the_one_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    labels = np.full((4, 5), 2, dtype=np.uint8)
    first = journal.add("a", "accept")
    journal.add("a", "reject", author="ann")
    journal.add("a", "tags", ["cow"])
    journal.add("b", "tags", [])
    drawn = journal.add("b", "mask", labels=labels)
    assert drawn.mask is not None and (raw_mask(tmp_path / drawn.mask) == labels).all()
    assert journal.decisions() == {
        "a": Decision("reject", ("cow",)),
        "b": Decision(None, (), tmp_path / drawn.mask),
    }
    journal.add("a", "undo")
    assert journal.decisions()["a"] == Decision("reject")
    journal.add("a", "undo")
    assert journal.decisions()["a"] == Decision("accept")
    journal.add("a", "undo", of=first.id)
    assert "a" not in journal.decisions()
    with pytest.raises(DataError, match="nothing to undo for 'a'"):
        journal.add("a", "undo")
    lines = (tmp_path / "review.jsonl").read_text().splitlines()
    assert len(lines) == 8 and json.loads(lines[1])["author"] == "ann", "nothing was taken out"


def test_a_mask_that_is_drawn_again_is_another_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    names = {journal.add("a", "mask", labels=np.full((2, 2), i, dtype=np.uint8)).mask for i in range(3)}
    assert len(names) == len(list((tmp_path / "review").iterdir())) == 3
    journal.add("a", "undo")
    kept = journal.decisions()["a"].mask
    assert kept is not None and (raw_mask(kept) == 1).all()


def test_a_line_that_was_cut_off_loses_nothing_else(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add("a", "accept")
    with journal.path.open("a") as file:
        file.write('{"id": "x", "photo": "b", "act')
    journal.add("c", "reject")
    with pytest.warns(UserWarning, match=r"review\.jsonl, line 2: left out"):
        assert journal.decisions() == {"a": Decision("accept"), "c": Decision("reject")}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        '{"id": "1", "photo": "a", "action": "delete", "time": "", "author": ""}',
        '{"id": "1", "photo": "../a", "action": "accept", "time": "", "author": ""}',
        '{"id": "1", "photo": "a", "action": "mask", "time": "", "author": "", "mask": "../../etc/passwd"}',
        '{"id": "1", "photo": "a", "action": "tags", "time": "", "author": "", "tags": 5}',
        '{"id": "1", "photo": "a", "action": "tags", "time": "", "author": "", "tags": "cow"}',
        '{"id": "1", "photo": "a", "action": "tags", "time": "", "author": ""}',
        '{"id": "1", "photo": "a", "action": "mask", "time": "", "author": ""}',
        '{"id": "1", "photo": "a", "action": "mask", "time": "", "author": "", "mask": 5}',
        '{"id": "1", "photo": "a", "action": "undo", "time": "", "author": "", "of": ["1"]}',
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
        "[" * 100_000,
    ],
)
def test_lines_that_are_no_entries_are_left_out(tmp_path: Path, line: str) -> None:
    (tmp_path / "review.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="line 1: left out"):
        assert Journal(tmp_path).decisions() == {}


def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leads out"):
        Journal(tmp_path / "run").add("../a", "mask", labels=np.zeros((2, 2), dtype=np.uint8))
    assert not (tmp_path / "a.png").exists() and not list(tmp_path.glob("*.png"))


def test_two_people_at_once_lose_nothing(tmp_path: Path) -> None:
    def decide(name: str) -> None:
        journal = Journal(tmp_path)
        for i in range(20):
            journal.add(f"{name}{i}", "accept", author=name)

    threads = [threading.Thread(target=decide, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Journal(tmp_path).entries()
    assert len(entries) == len({entry.id for entry in entries}) == 60


def collection() -> Collection:
    items = [
        Item("train0", Path("0.png"), (0,)),
        Item("train1", Path("1.png"), (1,), mask=Path("true.png")),
        Item("val", Path("2.png"), (0, 1)),
        Item("later", Path("3.png"), None),
        Item("other", Path("4.png"), None),
    ]
    return Collection("table", Path("data"), ["cow", "dog"], items, {"train": ["train0", "train1"], "val": ["val"]})


def test_decisions_change_what_trains_and_what_is_true() -> None:
    drawn = Path("drawn.png")
    decisions = {
        "train0": Decision("accept", ("dog", "cow"), drawn),
        "train1": Decision("reject"),
        "val": Decision(None, None, drawn),
        "later": Decision(None, ()),
        "gone": Decision("accept"),
    }
    found = reviewed(collection(), decisions, Path("review.jsonl"))
    assert [item.tags for item in found.items] == [(0, 1), (1,), (0, 1), (), None]
    assert found.splits == {"train": ["train0", "later"], "val": ["val"]}
    assert [(item.corrected, item.mask) for item in found.items] == [
        (drawn, None),  # it trains: no true mask is read there
        (None, Path("true.png")),
        (drawn, drawn),
        (None, None),
        (None, None),
    ]
    assert {problem.path for problem in found.problems} == {"train1", "gone"}
    assert reviewed(collection(), {}, Path("x")) == collection()


def test_a_true_mask_of_the_user_goes_before_a_drawn_one() -> None:
    found = reviewed(collection(), {"train1": Decision(mask=Path("drawn.png"))}, Path("x")).item("train1")
    assert found.mask == Path("true.png") and found.corrected == Path("drawn.png")


def test_tags_that_are_no_classes_are_named() -> None:
    with pytest.raises(DataError, match=r"review\.jsonl: photo 'val' has the tag 'dogs'.*dog"):
        reviewed(collection(), {"val": Decision(tags=("dogs",))}, Path("review.jsonl"))


def test_a_review_is_in_force_where_data_reviewed_names_it(tmp_path: Path) -> None:
    write_demo(tmp_path / "scenes", images=8, size=(64, 80), seed=3)
    data = {"root": str(tmp_path / "scenes"), "reviewed": str(tmp_path / "run")}
    with pytest.raises(DataError, match="there is no review; 'tagmask view RUN' makes one"):
        open_data(load_config({"data": data}).data)
    plain = open_data(load_config({"data": data | {"reviewed": None}}).data)
    photo = plain.split("train")[0].id
    Journal(tmp_path / "run").add(photo, "tags", plain.classes[:2])
    found = open_data(load_config({"data": data}).data)
    assert found.item(photo).tags == (0, 1) and found.splits == plain.splits
    assert decided([], tmp_path) == {}


def test_a_later_review_goes_over_the_one_that_was_learned(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "first"), Journal(tmp_path / "second")
    first.add("a", "tags", ["cow"])
    first.add("a", "accept")
    first.add("b", "reject")
    second.add("a", "reject")
    second.add("c", "tags", [])
    expected = {"a": Decision("reject", ("cow",)), "b": Decision("reject"), "c": Decision(tags=())}
    assert decisions_of(second.folder, first.folder) == expected
    assert decisions_of(second.folder, None) == second.decisions()
