"""What the label files of stages hold, against loops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tagmask.config import load_config
from tagmask.data import open_data
from tagmask.errors import ConfigError, DataError
from tagmask.label import Labelled, LabelWriter, Look, go_over, read_missing
from tagmask.refine import DenseCRF, label_probabilities
from tagmask.stage_config import CamsStage, MasksStage
from tagmask.workflow.stage_labels import ConfidentLabels, WalkedMasks, of_tagged


def fake_inference(cams: torch.Tensor, factor: torch.Tensor | None = None) -> Any:
    """An Inference whose CAMs are given; images of their size, without a working grid of their own."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        config=SimpleNamespace(max_side=99),
        method=SimpleNamespace(classes=len(cams)),
        cams=lambda photo, tags: cams * tags[:, None, None],
        background_factor=lambda photo: factor,
        batch=lambda photo, longest: photo[None].float() / 255,
    )


def look(inference: Any, photo: torch.Tensor, present: torch.Tensor) -> Look:
    tags = torch.zeros(inference.method.classes)
    tags[present] = 1
    return Look(inference, photo, tags)


def write(folder: Path, items: Any, classes: Any, make: Any, note: Any, **options: Any) -> Labelled:
    """Label files of items whose photos are read as in a pass; their looks are never used."""
    writer = LabelWriter(folder, items, classes, note, make, **options)
    go_over(SimpleNamespace(method=SimpleNamespace(classes=len(classes))), writer.todo, [writer.add], "", None)  # type: ignore[arg-type]
    return writer.finish()


@pytest.mark.parametrize("rule", ["constant", "power"])
@pytest.mark.parametrize("crf", ["none", "psa"])
@pytest.mark.parametrize("confidence", [0.7, None])
@pytest.mark.parametrize("guided", [False, True])
def test_confident_labels_equal_the_rule(rule: str, crf: str, confidence: float | None, guided: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    cams = torch.rand(4, 9, 11, generator=generator)
    photo = torch.randint(0, 256, (3, 9, 11), generator=generator, dtype=torch.uint8)
    stage = CamsStage(rule=rule, high=0.8, low=0.5, power_high=0.5, power_low=2, crf=crf, confidence=confidence)  # type: ignore[arg-type]
    present = torch.tensor([1, 3])
    factor = torch.rand(9, 11, generator=generator) * 2 if guided else torch.ones(9, 11)
    inference = fake_inference(cams, factor[None, None] if guided else None)
    labels, soft = ConfidentLabels(stage)(look(inference, photo, present), present)
    assert torch.equal(soft, cams[[1, 3]])

    def labelling(constant: float, power: float) -> torch.Tensor:
        found = torch.zeros(9, 11, dtype=torch.long)
        scores = torch.zeros(3, 9, 11)
        for y in range(9):
            for x in range(11):
                best = max(float(cams[1, y, x]), float(cams[3, y, x]))
                scores[0, y, x] = min(
                    1, (constant if rule == "constant" else (1 - best) ** power) * float(factor[y, x])
                )
                scores[1, y, x], scores[2, y, x] = cams[1, y, x], cams[3, y, x]
                found[y, x] = max(range(3), key=lambda k: float(scores[k, y, x]))
        if crf == "none":
            return found
        probs = scores[None] if confidence is None else label_probabilities(found[None], 3, confidence)
        return DenseCRF.preset(crf)(photo[None], probs)[0].argmax(0)

    strict, lenient = labelling(0.8, 0.5), labelling(0.5, 2)
    for y in range(9):
        for x in range(11):
            a, b = int(strict[y, x]), int(lenient[y, x])
            assert int(labels[y, x]) == (a if a and b else 0 if not a and not b else 255)
    assert len(labels.unique()) > 1


def test_label_files_have_the_photos_size_and_the_data_sets_classes(tmp_path: Path, scenes: Path) -> None:
    collection = open_data(load_config({"data": {"root": str(scenes)}}).data)
    items = [item for item in collection.items if item.tags][:1]
    items += [replace(items[0], id="nothing", tags=()), replace(items[0], id="broken", image=Path("nowhere.jpg"))]

    def make(look: Look, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(look.photo.shape[-2:], dtype=torch.uint8)
        labels[0, 0], labels[1, 1] = len(present), 255
        return labels, torch.zeros(len(present), 2, 2)

    labels = of_tagged(make, collection.classes)
    made = write(tmp_path / "out", items, collection.classes, labels, {"value": 1}, soft=True)
    values = np.array(Image.open(tmp_path / "out" / f"{items[0].id}.png"))
    assert values.shape == (64, 80) and values[0, 0] == items[0].tags[-1] + 1 and values[1, 1] == 255  # type: ignore[index]
    assert not np.array(Image.open(tmp_path / "out" / "nothing.png")).any(), "nothing in it: background"
    assert made.written == 2 and "nowhere.jpg" in made.failed[0][0]
    with np.load(tmp_path / "out" / f"{items[0].id}.npz") as saved:
        assert json.loads(str(saved["classes"])) == [collection.classes[t] for t in items[0].tags or ()]


def test_overwriting_that_is_killed_leaves_no_old_labels(tmp_path: Path, scenes: Path) -> None:
    items = open_data(load_config({"data": {"root": str(scenes)}}).data).items[:3]

    def labelled(value: int, die_after: int = 9, **options: Any) -> Labelled:
        def make(item: Any, look: Look) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
            if items.index(item) == die_after:
                raise KeyboardInterrupt
            return torch.full(look.photo.shape[-2:], value, dtype=torch.uint8), torch.full((1, 2, 2), value), ["x"]

        return write(tmp_path, items, list("abcdefgh"), make, {"value": value}, **options)

    labelled(1, soft=True)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    with pytest.raises(ConfigError, match=str(tmp_path)):
        labelled(2)
    with pytest.raises(KeyboardInterrupt):
        labelled(2, die_after=1, overwrite=True)
    assert labelled(2).skipped == 1
    assert not list(tmp_path.glob("*.npz")), "soft maps of the first labels, beside the second ones"
    assert {int(np.array(Image.open(path)).max()) for path in tmp_path.glob("*.png")} == {2}
    with pytest.raises(ConfigError, match=str(tmp_path)):
        write(tmp_path, [replace(items[0], id="further")], [], None, {"value": 3}, overwrite=True)


def test_the_list_of_masks_that_lack_a_class_is_whole_or_not_there(tmp_path: Path, scenes: Path) -> None:
    collection = open_data(load_config({"data": {"root": str(scenes)}}).data)
    items = [replace(item, id=f"sub/{i}, {item.id}") for i, item in enumerate(collection.items) if item.tags][:3]
    classes = ['a "b", c', *collection.classes[1:]]

    def labelled(value: int, die_after: int = 9, own: Any = items, **options: Any) -> Labelled:
        def make(item: Any, look: Look) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
            if items.index(item) == die_after:
                raise KeyboardInterrupt
            return torch.full(look.photo.shape[-2:], value, dtype=torch.uint8), torch.zeros(1, 2, 2), ["x"]

        return write(tmp_path, own, classes, make, {"value": value}, **options)

    every = {item.id: [classes[tag] for tag in item.tags or ()] for item in items}
    assert labelled(0, own=items[:1]).missing == read_missing(tmp_path) == {items[0].id: every[items[0].id]}
    again = labelled(0)
    assert again.skipped == 1 and again.missing == read_missing(tmp_path) == every
    (tmp_path / "missing.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "missing.csv").read_bytes())
    assert labelled(0, own=items[:1]).skipped == 1 and read_missing(tmp_path) == every, "rows of others stay"
    with pytest.raises(KeyboardInterrupt):
        labelled(1, die_after=1, overwrite=True)
    assert read_missing(tmp_path) == {}, "these masks are no more"
    (tmp_path / "missing.csv").write_text("image,class,note\n")
    with pytest.raises(DataError, match=r"missing\.csv, row 1"):
        labelled(1)
    (tmp_path / "missing.csv").unlink()
    path = tmp_path / f"{items[0].id}.png"
    path.write_bytes(path.read_bytes()[:40])
    broken = labelled(1)
    assert broken.failed[0][0] == str(path) and "Delete it" in broken.failed[0][1] and broken.written == 2


def test_the_crf_of_masks_is_applied() -> None:
    cams = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(2))
    photo = torch.zeros(3, 9, 11, dtype=torch.uint8)
    photo[:, :, 5:] = 200

    class Walker:
        def propagate(self, images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full((1, 9, 11), 0.5), maps])

    inference = fake_inference(cams)
    inference.running = lambda: torch.autocast("cpu", enabled=False)
    present = torch.tensor([0, 1])
    seen = look(inference, photo, present)
    plain, scores = WalkedMasks(inference, MasksStage(), Walker())(seen, present)  # type: ignore[arg-type]
    assert torch.equal(plain, torch.cat([torch.full((1, 9, 11), 0.5), cams]).argmax(0).byte())
    smooth, _ = WalkedMasks(inference, MasksStage(crf="psa"), Walker())(seen, present)  # type: ignore[arg-type]
    probs = scores / scores.sum(0)
    assert torch.equal(smooth, DenseCRF.preset("psa")(photo[None], probs[None])[0].argmax(0).byte())
    assert not torch.equal(plain, smooth)
