"""``tagmask label`` and ``tagmask predict``: a trained run makes masks."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob
from pathlib import Path

from PIL import Image
from rich.console import Console

from tagmask.data import Item, read_image, read_mask
from tagmask.data.find import find_images
from tagmask.errors import DataError
from tagmask.label import Inference, Labelled, write_masks
from tagmask.report import overlay as draw_overlay
from tagmask.training import RunFolder, read_json
from tagmask.workflow.runs import open_run, reopen


def label(
    run: str | Path,
    split: str = "train",
    out: str | Path | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Labelled:
    """Masks of a split's tagged photos (of several, as in 'train+val'), written to ``out`` or the run's masks/.

    Only a photo's tags can appear in its mask. Photos without tags are left out and counted.
    """
    folder, config, method = open_run(run, overrides)
    collection = reopen(folder, config)
    items = list({item.id: item for name in split.split("+") for item in collection.split(name)}.values())
    tagged = [item for item in items if item.tags is not None]
    done = write_masks(
        Inference(method, config),
        tagged,
        collection.classes,
        Path(out) if out else folder.masks,
        with_tags=True,
        model=folder.model,
        overwrite=overwrite,
        soft=config.label.soft,
        console=console,
    )
    done.untagged = len(items) - len(tagged)
    return done


def predict(
    run: str | Path,
    photos: Sequence[str | Path | Item],
    out: str | Path,
    overlay: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Labelled:
    """Masks of photos (files, folders, globs, or items) without tags, into ``out``. Raises DataError for no photo."""
    folder, config, method = open_run(run, overrides)
    classes = read_json(RunFolder(run).model / "classes.json")["classes"]
    items = photo_items(photos)
    done = write_masks(
        Inference(method, config),
        items,
        classes,
        Path(out),
        with_tags=False,
        model=folder.model,
        overwrite=overwrite,
        soft=config.label.soft,
        console=console,
    )
    if overlay:
        failed = {name for name, _ in done.failed}
        for item in items:
            if str(item.image) not in failed:
                labels = read_mask(Path(out) / f"{item.id}.png", len(classes)).numpy()
                picture = draw_overlay(read_image(item.image).permute(1, 2, 0).numpy(), labels)
                Image.fromarray(picture).save(Path(out) / f"{item.id}_overlay.jpg", quality=90)
    return done


def photo_items(photos: Sequence[str | Path | Item]) -> list[Item]:
    """Items of files, folders (searched to any depth, ids keep the subfolders) and globs.

    Raises DataError naming what matches nothing, or two photos whose masks would be one file.
    """
    found: list[Item] = []
    for entry in photos:
        if isinstance(entry, Item):
            found.append(entry)
            continue
        place = Path(entry)
        if place.is_dir():
            items = [Item(p.relative_to(place).with_suffix("").as_posix(), p, None) for p in find_images(place)]
        else:
            paths = [place] if place.is_file() else [Path(p) for p in sorted(glob(str(entry)))]
            items = [Item(p.stem, p, None) for p in paths]
        if not items:
            raise DataError(f"{entry}: no such photo, and no photo in it.")
        found += items
    by_id: dict[str, Item] = {}
    for item in found:
        if by_id.setdefault(item.id, item).image != item.image:
            raise DataError(
                f"{item.image} and {by_id[item.id].image} would both write {item.id}.png; predict them apart."
            )
    return list(by_id.values())
