"""``tagmask convert``: benchmarks' files to what tagmask reads, and masks to other tools and test servers, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from tagmask.cli import common

convert = typer.Typer(
    help="Convert benchmarks to masks and tags, and masks to other tools, to test servers, and back.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
common.app.add_typer(convert, name="convert", epilog="Example: `tagmask convert sbd VOCdevkit/VOC2012`")

Workers = Annotated[int, typer.Option(min=1, help="processes at once")]
FORMATS = "coco, coco-panoptic, yolo, cvat, labelstudio, cityscapes, geojson, voc"
SHOWN = 10
"""Failures that are printed."""


@convert.command(epilog="Example: `tagmask convert sbd VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset`")
def sbd(
    voc: Annotated[Path, typer.Argument(metavar="VOC", help="folder with JPEGImages", show_default=False)],
    sbd: Annotated[Path | None, typer.Option(help="SBD's folder with cls; default: in VOC or above")] = None,
    workers: Workers = 2,
    json: common.Json = False,
) -> None:
    """SBD's .mat files to SegmentationClassAug/*.png, and the list train_aug."""
    from tagmask.convert import sbd_masks

    with _bar("masks", json) as progress:
        _report(sbd_masks(voc, sbd, workers, progress), json)


@convert.command(epilog="Example: `tagmask convert coco coco/annotations/instances_train2014.json`")
def coco(
    annotations: Annotated[Path, typer.Argument(metavar="JSON", help="instances_*.json", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="default: the folder above annotations")] = None,
    workers: Workers = 2,
    json: common.Json = False,
) -> None:
    """COCO's instance annotations to a mask a photo and a table of tags; goes on where it was cut off."""
    from tagmask.convert import coco_masks

    with _bar("parts", json) as progress:
        _report(coco_masks(annotations, out, workers, progress), json)


@convert.command(epilog="Example: `tagmask convert labels cls_labels.npy tags.jsonl --classes voc`")
def labels(
    file: Annotated[Path, typer.Argument(metavar="NPY", help="pickled dictionary of vectors", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="JSONL", help="table of tags to write", show_default=False)],
    classes: Annotated[str, typer.Option(help="voc, coco, or a file with one class a line")],
    prefix: Annotated[str, typer.Option(help="start of COCO's file names, before numbers: COCO_train2014_")] = "",
    json: common.Json = False,
) -> None:
    """Another project's label file to a table of tags, without running code that may be in it."""
    from tagmask.convert import image_names, read_label_file, write_tags
    from tagmask.data.find import check_classes, read_lines
    from tagmask.data.source_coco import COCO_CATEGORIES
    from tagmask.data.source_voc import VOC_CLASSES

    known = {"voc": list(VOC_CLASSES), "coco": list(COCO_CATEGORIES.values())}
    names = known.get(classes) or check_classes([n for _, n in read_lines(Path(classes))], classes)
    numbers = classes if classes in known else ""
    _report({"rows": write_tags(image_names(read_label_file(file), numbers, prefix), names, out)}, json)


@convert.command("voc-submission", epilog="Example: `tagmask convert voc-submission masks out --voc VOCdevkit/VOC2012`")
def voc_submission(
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="folder of predicted masks", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write", show_default=False)],
    voc: Annotated[Path, typer.Option(help="VOC folder with the test list and photos")],
    competition: Annotated[str, typer.Option(help="comp5: VOC's own data only; comp6: any other")] = "comp6",
    json: common.Json = False,
) -> None:
    """Masks of VOC's test photos to the folder tree and archive that its server takes."""
    from tagmask.convert import voc_submission
    from tagmask.data.benchmarks import missing
    from tagmask.data.find import read_lines
    from tagmask.data.splits import find_list
    from tagmask.errors import DataError

    path = find_list(voc, "test")
    if path is None:
        raise DataError(f"{voc}: there is no list 'test'.{missing('voc2012', 'test')}")
    ids = [line for _, line in read_lines(path)]
    with _bar("masks", json) as progress:
        archive = voc_submission(masks, out, ids, voc / "JPEGImages", competition, progress)
    _report({"masks": len(ids), "archive": str(archive)}, json)


@convert.command("coco-results", epilog="Example: `tagmask convert coco-results runs/first/masks results.json`")
def coco_results(
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="folder of masks", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="JSON", help="file to write", show_default=False)],
    json: common.Json = False,
) -> None:
    """Masks to COCO's results format, run lengths for each photo and category."""
    from tagmask.convert import coco_results

    with _bar("masks", json) as progress:
        _report(coco_results(masks, out, progress), json)


@convert.command(epilog="Example: `tagmask convert masks runs/first --to cvat -o cvat`")
def masks(
    run: common.RunPath,
    format: Annotated[str, typer.Option("--to", metavar="FORMAT", help=FORMATS)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="new folder to write")],
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="other masks of the run's photos; default: the run's")
    ] = None,
    split: Annotated[str | None, typer.Option(help="only photos of train, val, test or list:NAME")] = None,
    copy: Annotated[bool, typer.Option("--copy", help="yolo, voc: copy the photos; otherwise they are linked")] = False,
    url: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="labelstudio: what stands before the photos' names")
    ] = None,
    json: common.Json = False,
) -> None:
    """The masks of a run's photos to the files of another tool."""
    from tagmask.convert import FORMATS, masks_to
    from tagmask.errors import ConfigError
    from tagmask.workflow import Run

    for option, is_set, used in (("--copy", copy, ("yolo", "voc")), ("--url", url is not None, ("labelstudio",))):
        if is_set and format in FORMATS and format not in used:
            raise ConfigError(f"{option}: only {' and '.join(used)} use it. Leave it away.")
    opened = Run(run)
    given = {} if url is None else {"url": url}
    with _bar("masks", json) as progress:
        done = masks_to(
            format, opened.collection, masks or opened.folder.masks, out, split, copy, **given, progress=progress
        )
    _report_failures(done, json)


@convert.command(
    "masks-from", epilog="Example: `tagmask convert masks-from cvat annotations.xml --of runs/first -o corrected`"
)
def masks_from(
    format: Annotated[str, typer.Argument(metavar="FORMAT", help=FORMATS, show_default=False)],
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", help="what the tool gave", show_default=False)],
    run: Annotated[Path, typer.Option("--of", metavar="RUN", help="run folder whose photos these are")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="new folder to write")],
    json: common.Json = False,
) -> None:
    """Another tool's file to masks; 'tagmask review RUN --import FOLDER' takes them into the run's review."""
    from tagmask.convert import masks_from
    from tagmask.workflow import Run

    opened = Run(run)
    with _bar("masks", json) as progress:
        done = masks_from(format, source, opened.collection, out, progress)
    _report_failures(done, json)


def _report_failures(done: dict[str, Any], json: bool) -> None:
    """Print counts and what failed; exit with 1 where something did."""
    from tagmask.errors import plain

    failed = done["failed"]
    _report(done if json else done | {"failed": len(failed)}, json)
    if failed:
        if not json:
            for failure in failed[:SHOWN]:
                common.say(plain(f"left out: {failure['why']}"), "red")
            if len(failed) > SHOWN:
                common.say(f"… and {len(failed) - SHOWN} more (--json lists all).", "red")
        raise typer.Exit(1)


@contextmanager
def _bar(what: str, json: bool) -> Iterator[Callable[[int, int], None]]:
    # On standard error: standard output is for what programs read.
    with Progress(console=Console(stderr=True), disable=json, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _report(counts: dict[str, Any], json: bool) -> None:
    if json:
        common.print_json(counts)
    else:
        common.say(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in counts.items()))
