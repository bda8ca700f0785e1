"""The pass over many photos: in order, the same with a thread that writes and in batches as one by one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from tagmask.data import Item
from tagmask.errors import DataError
from tagmask.label import Inference, Look, go_over
from tests.label.test_infer import Pointwise, config, photo

SIZES = [(20, 30), (20, 30), (20, 30), (20, 30), (30, 20), (20, 30), (24, 24), (24, 24)]


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    found = []
    for i, size in enumerate(SIZES):
        path = tmp_path / f"{i}.png"
        Image.fromarray(photo(*size, seed=i).permute(1, 2, 0).numpy()).save(path)
        found.append(Item(str(i), path, (0, 2)))
    (tmp_path / "2.png").write_bytes(b"no picture")
    return found


def run(items: list[Item], together: int = 1, ahead: bool = True, source: str = "segmenter") -> tuple[dict, list]:
    """Masks with tags by id, None for an unreadable photo, and how many photos the network saw at once."""
    inference, made, batches = Inference(Pointwise(), config(source=source, crf="afa")), {}, []
    inference.at_once = together * 20 * 30
    segment = inference.method.segment

    def seen(images: Tensor) -> Tensor:
        batches.append(len(images))
        return segment(images)

    inference.method.segment = seen  # type: ignore[method-assign]

    def consume(item: Item, look: Look | DataError) -> None:
        made[item.id] = None if isinstance(look, DataError) else look.mask[0]
        threads.add(threading.current_thread() is threading.main_thread())

    threads: set[bool] = set()
    kind = {"segmenter": "logits", "cam": "cams"}[source] if ahead else None
    go_over(inference, items, [consume], "test", Console(quiet=True), ahead=kind)
    assert threads == {not ahead}
    return made, batches


@pytest.mark.parametrize("source", ["segmenter", "cam"])
def test_a_thread_makes_the_same_masks_in_the_same_order(items: list[Item], source: str) -> None:
    wanted, _ = run(items, ahead=False, source=source)
    made, _ = run(items, source=source)
    assert list(made) == list(wanted) == [item.id for item in items] and made["2"] is wanted["2"] is None
    for id in wanted.keys() - {"2"}:
        assert torch.equal(made[id], wanted[id]), id


def test_photos_of_one_size_are_segmented_together(items: list[Item]) -> None:
    wanted, one = run(items)
    made, several = run(items, together=3)
    assert one == [1] * 7 and several == [2, 1, 1, 1, 2], "an unreadable photo and another size end a batch"
    for id in wanted.keys() - {"2"}:
        assert (made[id] != wanted[id]).float().mean() < 1e-3, id


def test_what_fails_in_the_thread_ends_the_pass(items: list[Item]) -> None:
    seen = []

    def consume(item: Item, look: Look | DataError) -> None:
        seen.append(item.id)
        if item.id == "3":
            raise DataError("disk: full")

    inference = Inference(Pointwise(), config())
    with pytest.raises(DataError, match="disk: full"):
        go_over(inference, items, [consume], "test", Console(quiet=True), ahead="logits")
    assert seen[:4] == ["0", "1", "2", "3"] and len(seen) < len(items)
