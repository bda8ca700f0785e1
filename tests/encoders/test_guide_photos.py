"""A guide that sees whole photos, and what it keeps of them on disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tagmask.config import ViewConfig, load_config
from tagmask.data import TrainViews
from tagmask.encoders import build_encoder
from tagmask.encoders import guide as guide_module
from tagmask.encoders import guide_cache as cache_module
from tagmask.encoders.guide import Guide
from tagmask.encoders.guide_cache import GuideCache, content_key
from tagmask.errors import ConfigError, TagmaskError
from tagmask.types import Batch, Sample, View
from tests.encoders.test_guide import batch, guide, look

SIDE = 64


def ramp(height: int, width: int) -> torch.Tensor:
    """A photo whose red and green say which share of its width and height a pixel is at."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y, x * y])


def photos(scale: float = 1.0, seed: int = 0, flip: float = 0.5) -> Batch:
    """Crops of two photos, and the photos themselves, as the loader gives them."""
    samples = [Sample(ramp(*size), None, None, "a") for size in ((48, 64), (70, 40))]
    config = ViewConfig(crop=SIDE, scale=(scale, scale), flip=flip)
    made = [
        TrainViews(config, frozenset(("photo",)))(sample, torch.Generator().manual_seed(seed + i))
        for i, sample in enumerate(samples)
    ]
    whole = [m["views"]["photo"] for m in made]
    view = View(*(torch.stack([getattr(v, name) for v in whole]) for name in ("images", "boxes", "affine")))
    return batch(torch.stack([m["image"] for m in made]), torch.stack([m["box"] for m in made]), photo=view)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_keys_of_whole_photos_lie_where_the_crop_shows_them(
    scale: float, flip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With places in the photo for keys: what is cut out of the photo's keys is what the crop itself shows there."""
    monkeypatch.setattr(Guide, "_look", lambda self, encoder, images, *_: (F.avg_pool2d(images, 2), None))
    monkeypatch.setattr(Guide, "_unit", lambda self, keys, query: (keys, query))
    compared = 0
    for seed in range(4):
        given = photos(scale, seed, flip)
        found = guide(view="photo", cue="none")(given)
        shown = F.avg_pool2d(given.images, 2)
        for b, (x0, y0, x1, y1) in enumerate(given.boxes.tolist()):
            rows, columns = slice(y0 // 2 + 3, y1 // 2 - 3), slice(x0 // 2 + 3, x1 // 2 - 3)
            at, keys = shown[b, :2, rows, columns], found.keys[b, :2, rows, columns]
            clear = ((at > 0.1) & (at < 0.9)).all(0)  # the whole photo's edge blends with its padding
            torch.testing.assert_close(keys[:, clear], at[:, clear], atol=2e-3, rtol=0)
            compared += int(clear.sum())
    assert compared > 300


def test_the_whole_photo_is_the_same_in_every_step() -> None:
    one, other = (photos(scale, seed).views["photo"] for scale, seed in ((0.6, 1), (1.7, 2)))
    assert torch.equal(one.images, other.images) and torch.equal(one.boxes, other.boxes)
    assert one.boxes.tolist() == [[0, 0, 64, 48], [0, 0, 37, 64]] and not torch.equal(one.affine, other.affine)
    sample, config = Sample(ramp(48, 64), None, None, "a"), ViewConfig(crop=SIDE)
    main = [
        TrainViews(config, frozenset(wanted))(sample, torch.Generator().manual_seed(1))["image"]
        for wanted in ((), ("photo",))
    ]
    assert torch.equal(*main), "it draws no random number"
    with pytest.raises(ConfigError, match="needs the view 'photo'"):
        look(guide(view="photo"))


class Looks:
    """Counts images that a guide's network sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        own = Guide._look

        def watched(which: Guide, encoder: Any, images: torch.Tensor, *rest: Any) -> Any:
            self.images += len(images)
            return own(which, encoder, images, *rest)

        monkeypatch.setattr(Guide, "_look", watched)


def test_cache_gives_what_the_guide_sees_and_spares_it_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)
    plain = guide(view="photo")(photos())
    looks.images = 0
    first = guide(view="photo", cache=tmp_path)(photos())
    assert looks.images == 2
    torch.testing.assert_close(first.keys, plain.keys, atol=1e-3, rtol=0)
    torch.testing.assert_close(first.query, F.normalize(plain.query, dim=1), atol=1e-3, rtol=0)
    again = guide(view="photo", cache=tmp_path)(photos())  # as another run
    assert looks.images == 2 and torch.equal(again.keys, first.keys) and torch.equal(again.query, first.query)
    elsewhere = guide(view="photo", cache=tmp_path)(photos(1.5, seed=3))
    assert looks.images == 2 and not torch.equal(elsewhere.keys, first.keys), "other crops of the same photos"
    assert len(list(tmp_path.glob("??/*.safetensors"))) == len([p for p in tmp_path.rglob("*") if p.is_file()]) == 2


def test_the_rest_of_the_batch_does_not_change_an_entry(tmp_path: Path) -> None:
    """Entries are made photo by photo: the numbers of a run do not depend on which were there already."""
    whole = photos()
    view = whole.views["photo"]
    alone = batch(whole.images[1:], whole.boxes[1:], photo=View(view.images[1:], view.boxes[1:], view.affine[1:]))
    together = guide(view="photo", cache=tmp_path / "a")(whole).keys[1:]
    assert torch.equal(together, guide(view="photo", cache=tmp_path / "b")(alone).keys)


def test_entries_are_told_apart_by_content_weights_size_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)

    def seen(given: Batch | None = None, **settings: Any) -> int:
        before = looks.images
        guide(view="photo", cache=tmp_path, **settings)(photos() if given is None else given)
        return looks.images - before

    assert (seen(), seen()) == (2, 0)
    other = photos()
    other.views["photo"].images[1, 0, 5, 5] += 0.1
    assert seen(other) == 1, "content"
    boxed = photos()
    boxed.views["photo"].boxes[0, 2] -= 1
    assert seen(boxed) == 1, "box"
    smaller = photos()
    view = smaller.views["photo"]
    smaller.views["photo"] = View(view.images[:, :, :48, :48], view.boxes, view.affine)
    assert seen(smaller) == 2, "size"
    assert seen(block=2) == 2 and seen(scales=[1.0, 0.5]) == 4 and seen(precision="half") == 2 and seen() == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert seen() == 0 and seen(precision="fp32") == 0, "as the step, which is half precision here; and full"
    build = build_encoder

    def changed(*args: Any, **kwargs: Any) -> Any:
        encoder = build(*args, **kwargs)
        with torch.no_grad():
            encoder.model.blocks[0].attn.qkv.weight[0, 0] += 1
        return encoder

    monkeypatch.setattr(guide_module, "build_encoder", changed)
    assert seen() == 2, "weights"
    monkeypatch.setattr(guide_module, "FORMAT", 0)
    assert (seen(), seen()) == (2, 0), "what an entry is"


def test_cache_is_bounded_and_says_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"keys": torch.zeros(1000, dtype=torch.half)}
    cache = GuideCache(tmp_path, 10_000)
    with pytest.warns(UserWarning, match=r"is full .*method\.guide\.cache_gb") as told:
        for i in range(20):
            cache.put(content_key(str(i)), entry)
    assert len(told) == 1
    kept = [i for i in range(20) if cache.get(content_key(str(i))) is not None]
    assert kept == [0, 1, 2, 3] and sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 10_000
    with pytest.warns(UserWarning, match="is full"):  # another process counts what is there
        GuideCache(tmp_path, 10_000).put(content_key("20"), entry)
    monkeypatch.setattr(cache_module, "RECOUNT", 2)
    one, two = GuideCache(tmp_path / "both", 40_000), GuideCache(tmp_path / "both", 40_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(40):
            (one, two)[i % 2].put(content_key(str(i)), entry)
    files = list((tmp_path / "both").glob("??/*"))
    assert sum(p.stat().st_size for p in files) <= 40_000 + 2 * 2 * 2512


def test_a_full_cache_is_not_counted_at_every_photo_and_replaces_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"keys": torch.zeros(1000, dtype=torch.half)}
    counts = []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: counts.append(1) or glob(self, pattern))
    cache = GuideCache(tmp_path, 10_000)
    with pytest.warns(UserWarning, match="is full"):
        for i in range(100):
            cache.put(content_key(str(i)), entry)
    assert len(counts) == 4, "32 entries apart"
    monkeypatch.undo()
    broken = next(tmp_path.glob("??/*"))
    broken.write_bytes(bytes(broken.stat().st_size))
    for _ in range(2):
        cache.put(broken.stem, entry)
    assert cache.get(broken.stem) is not None


def test_unreadable_entries_are_made_anew_and_unwritable_folders_are_named(tmp_path: Path) -> None:
    which = guide(view="photo", cache=tmp_path)
    first = which(photos())
    for path in tmp_path.glob("??/*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="not readable"):
        assert torch.equal(which(photos()).keys, first.keys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(which(photos()).keys, first.keys)
    (tmp_path / "file").write_text("")
    with pytest.raises(TagmaskError, match=r"file.*cannot be written.*method\.guide\.cache"):
        GuideCache(tmp_path / "file", 10**6).put(content_key("a"), {"keys": torch.zeros(2)})


@pytest.mark.parametrize(
    ("settings", "fault"), [({"cache": "kept"}, "view: photo"), ({"scales": [0.0]}, r"method\.guide\.scales")]
)
def test_settings_of_no_use_are_refused(settings: dict, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load_config({"method": {"name": "eca", "guide": settings}})
