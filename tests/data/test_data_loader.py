from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tagmask.config import DataConfig, ViewConfig
from tagmask.data import Item, TrainLoader, TrainViews, open_data, read_ahead, read_image
from tagmask.data.loader import read_sample
from tagmask.errors import DataError
from tagmask.types import Batch

C = 3


@pytest.fixture
def items(photos: Path) -> list[Item]:
    return open_data(DataConfig(root=photos, val_share=0)).split("train")


def loader(items: list[Item], wanted: tuple[str, ...] = (), **values: object) -> TrainLoader:
    views = TrainViews(
        ViewConfig.model_validate({"crop": 16, "local": {"size": 16}, "jitter": (0.2, 0.2, 0.2, 0.1)}),
        frozenset(wanted),
    )
    settings: dict = {"batch_size": 4, "steps": 6, "seed": 7, "workers": 0} | values
    return TrainLoader(items, C, views, **settings)


def same(one: Batch, two: Batch) -> bool:
    equal = one.ids == two.ids and all(
        torch.equal(getattr(one, n), getattr(two, n)) for n in ("images", "tags", "boxes")
    )
    for name in one.views:
        a, b = one.views[name], two.views[name]
        equal &= torch.equal(a.images, b.images) and torch.equal(a.affine, b.affine) and torch.equal(a.boxes, b.boxes)
    return equal and torch.equal(one.generator.get_state(), two.generator.get_state())


def test_what_a_batch_holds(items: list[Item]) -> None:
    batches = list(loader(items, ("strong", "local")))
    assert len(batches) == 6
    batch = batches[0]
    assert batch.images.shape == (4, 3, 16, 16) and batch.images.dtype == torch.float32
    assert batch.boxes.shape == (4, 4) and batch.boxes.dtype == torch.int64 and batch.masks is None
    assert batch.views["strong"].images.shape == (4, 3, 16, 16) and batch.views["strong"].affine.shape == (4, 2, 3)
    assert batch.views["local"].images.shape == (4, 2, 3, 16, 16) and batch.views["local"].boxes.shape == (4, 2, 4)
    by_id = {item.id: item for item in items}
    for b in batches:
        for id, tags in zip(b.ids, b.tags):
            assert tuple(tags.nonzero()[:, 0].tolist()) == by_id[id].tags


def test_each_epoch_is_another_permutation(items: list[Item]) -> None:
    drawn = [id for batch in loader(items, steps=5, batch_size=6) for id in batch.ids]
    epochs = [drawn[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(e) == [i.id for i in items] for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = [id for batch in loader(items, steps=5, batch_size=6, seed=8) for id in batch.ids]
    assert other != drawn


def test_fewer_images_than_a_batch_wrap(items: list[Item]) -> None:
    batch = next(iter(loader(items[:2], batch_size=5)))
    assert sorted(batch.ids)[:2] == [items[0].id] * 2 and len(batch.ids) == 5
    assert len({image.sum().item() for image in batch.images}) == 5  # each time augmented anew


def test_each_step_augments_anew(items: list[Item]) -> None:
    images = [batch.images for batch in loader(items[:1], batch_size=1)]
    assert len({image.sum().item() for image in images}) == 6


def test_resuming_gives_the_same_batches(items: list[Item]) -> None:
    whole, rest = list(loader(items, ("strong",))), list(loader(items, ("strong",), start_step=4))
    assert len(rest) == 2 and all(same(a, b) for a, b in zip(whole[4:], rest))
    assert not same(whole[0], whole[1])
    assert list(loader(items, start_step=6)) == []


def test_workers_do_not_matter(items: list[Item]) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = list(loader(items, ("local",)))
    many = list(loader(items, ("local",), workers=2))
    assert len(many) == 6 and all(same(a, b) for a, b in zip(alone, many))
    assert torch.equal(state, torch.get_rng_state())


def test_two_processes_share_the_batch_of_one(items: list[Item]) -> None:
    alone = list(loader(items))
    pair = [list(loader(items, batch_size=2, rank=rank, world=2)) for rank in (0, 1)]
    for one, first, second in zip(alone, *pair):
        assert one.ids == first.ids + second.ids
        assert torch.equal(one.images, torch.cat([first.images, second.images]))
        drawn = [batch.draw(torch.rand, 5) for batch in (one, first, second)]
        assert torch.equal(drawn[0], torch.cat(drawn[1:]))


def test_parts_of_a_batch_are_the_batch(items: list[Item]) -> None:
    parts = iter(loader(items, batch_size=2, parts=2))
    for one in loader(items):
        first, second = next(parts), next(parts)
        assert one.ids == first.ids + second.ids
        assert torch.equal(one.images, torch.cat([first.images, second.images]))
        assert torch.equal(one.draw(torch.rand, 3), torch.cat([p.draw(torch.rand, 3) for p in (first, second)]))


def test_masks_are_not_opened_unless_asked_for(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    absent = [replace(item, mask=Path("/nonexistent") / f"{item.id}.png") for item in items]
    monkeypatch.setattr("tagmask.data.loader.read_mask", lambda *a: pytest.fail("a mask was opened"))
    assert all(batch.masks is None for batch in loader(absent, steps=3))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"\.png"):
        list(loader(absent, masks=True))


def test_masks_for_methods_that_read_them(items: list[Item]) -> None:
    for batch in loader(items, masks=True):
        assert batch.masks is not None and batch.masks.shape == (4, 16, 16) and batch.masks.dtype == torch.uint8
        for id, mask, (x0, y0, x1, y1) in zip(batch.ids, batch.masks, batch.boxes.tolist()):
            assert (mask[y0:y1, x0:x1] == int(id[1:]) % 4).all()
    with pytest.raises(DataError, match=r"p00.*data\.masks"):
        loader([replace(items[0], mask=None), *items[1:]], masks=True)


def test_unusable_items_are_refused(items: list[Item]) -> None:
    with pytest.raises(DataError, match="tag"):
        loader([])
    with pytest.raises(DataError, match="'p03'"):
        loader([*items[:3], replace(items[3], tags=None)])


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_files_give_a_plain_message(items: list[Item], tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no")
    with pytest.raises(DataError, match=r"broken\.jpg") as error:
        list(loader([replace(items[0], image=broken)], workers=workers))
    assert "Traceback" not in str(error.value)


def test_read_ahead_keeps_order_and_hands_over_errors(items: list[Item]) -> None:
    broken = replace(items[1], id="broken", image=Path("/nonexistent.png"))
    found = list(read_ahead([items[0], broken, *items[2:]]))
    assert [item.id for item, _ in found] == [items[0].id, "broken", *(i.id for i in items[2:])]
    assert isinstance(found[1][1], DataError) and "nonexistent.png" in str(found[1][1])
    for item, photo in found[:1] + found[2:]:
        assert torch.equal(photo, read_image(item.image))
    assert list(read_ahead([])) == []
    stopped = read_ahead(items)
    next(stopped)
    stopped.close()  # must not hang


def test_samples_without_tags_or_mask(items: list[Item]) -> None:
    sample = read_sample(replace(items[0], tags=None, mask=None), C, masks=True)
    assert sample.tags is None and sample.mask is None
    empty = read_sample(replace(items[0], tags=()), C)
    assert empty.tags is not None and empty.tags.tolist() == [0, 0, 0]


def test_mask_of_another_size(items: list[Item], mask: Callable[..., Path], tmp_path: Path) -> None:
    height, width = read_image(items[0].image).shape[-2:]
    for shape, hint in (((height, width + 1), r"w\.png"), ((width, height), "EXIF")):
        wrong = replace(items[0], mask=mask(tmp_path / "w.png", torch.zeros(shape)))
        with pytest.raises(DataError, match=hint):
            read_sample(wrong, C, masks=True)
