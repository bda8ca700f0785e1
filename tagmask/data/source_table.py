"""Source 'table': photos in a folder, tags in a CSV or JSONL file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tagmask.config import DataConfig
from tagmask.data.collection import Collection, Item, Problem
from tagmask.data.find import (
    BACKGROUND,
    check_classes,
    data_root,
    given_classes,
    image_folder,
    make_ids,
    mask_folder,
    pair_masks,
    resolve,
)
from tagmask.data.layout import masks_among
from tagmask.data.name_index import NameIndex
from tagmask.data.pixels import read_colour_map
from tagmask.data.splits import column_splits, own_splits
from tagmask.data.table_cells import odd_classes
from tagmask.data.table_file import TABLE_NAMES, Row, TagTable, read_table, table_path
from tagmask.data.walk import Survey, none_found, survey
from tagmask.errors import DataError, nearest
from tagmask.registry import SOURCES

MANY = 10
"""Rows of one photo are taken for one object each where a photo in so many has several."""
FEW = 4
"""Photos that look like masks are refused where they are one in so many."""


@SOURCES.register("table")
def table(config: DataConfig) -> Collection:
    """Photos tagged by a CSV or JSONL file (see ``read_table``).

    Images without a row are unlabelled, rows without an image are listed as problems. Classes are ``data.classes``,
    or else ``classes.txt`` in the root, or else one-hot columns in their order, or else the tags sorted.
    Raises DataError on anything that cannot be understood.
    """
    root = data_root(config)
    path = table_path(config, root)
    if path is None:
        raise DataError(f"{root}: neither {' nor '.join(TABLE_NAMES)} is there. Write one, or set data.tags.")
    found = read_table(path, config.separator)
    classes = given_classes(config, root)
    if classes is None:
        names = sorted({tag for row in found.rows for tag in row.tags})
        if not names:
            raise DataError(f"{path}: no photo there has a tag. Name what is in them, or the classes in data.classes.")
        classes = check_classes(found.columns or names, str(path))
    base, masks = image_folder(config, root), mask_folder(config, root)
    photos = survey(base, masks)
    if not photos.images:
        raise DataError(f"{base}: {none_found(photos)}. Set data.images to the folder that {path} names them from.")
    tags, roles, problems = match_rows(found, photos.images, [base, root], classes, path)
    if not any(tags) and any(row.tags for row in found.rows):
        raise DataError(
            f"{path}: no row with a tag names an image below {base}. Mend the names, or set data.images "
            "to the folder that they begin in."
        )
    return assemble("table", config, root, photos, tags, classes, problems, roles)


def assemble(
    source: str,
    config: DataConfig,
    root: Path,
    found: Survey,
    tags: Sequence[tuple[int, ...] | None],
    classes: list[str],
    problems: list[Problem],
    roles: Sequence[str | None] = (),
) -> Collection:
    """The collection of the images that were found, with their tags: ids, masks, the colour map and the splits.

    These are the root's own lists, or else ``roles``: 'train', 'val' or 'test' of each image, None for no split.
    Raises DataError where many photos look like masks of others.
    """
    images, base = found.images, found.folder
    masks, orphans = pair_masks(images, base, found.without, config.masks is not None)
    items = [Item(*fields) for fields in zip(make_ids(images, base), images, tags, masks)]
    colours = None
    if config.colour_map is not None:
        colours = read_colour_map(resolve(config.colour_map, root, "colour_map"), classes)
    splits, unknown = own_splits(root, items, [base, root])
    if any(roles):
        if splits:
            lists = ", ".join(splits)
            unknown.append(Problem(str(root), f"the table's split column is not read: there are lists ({lists})"))
        splits = splits or column_splits(items, roles)
    named = [source == "table" and given is not None for given in tags]
    strays = _stray_masks([image for image, is_named in zip(images, named) if not is_named], images, base)
    told = [*found.problems, *problems, *orphans, *unknown, *strays, *odd_classes(classes, config.separator)]
    return Collection(source, root, classes, items, splits, told, colours)


def _stray_masks(candidates: Sequence[Path], images: Sequence[Path], base: Path) -> list[Problem]:
    """A problem where a few photos look like masks of others. Raises DataError where these are many."""
    twins = masks_among(images, base)
    found = [image for image in candidates if image in twins] if twins else []  # asking makes each path larger
    if not found:
        return []
    mask, photo = (path.relative_to(base) for path in (found[0], twins[found[0]]))
    what = f"{len(found)} of {len(images)} photos look like masks of others: '{mask}' of '{photo}'"
    if FEW * len(found) < len(images):
        return [Problem(str(found[0]), what)]
    raise DataError(
        f"{base}: {what}. Move the masks out of the photos' folders, or set data.images to the folder of the photos. "
        "If they are photos, give them other names."
    )


def match_rows(
    table: TagTable, images: Sequence[Path], bases: Sequence[Path], classes: list[str], path: Path
) -> tuple[list[tuple[int, ...] | None], list[str | None], list[Problem]]:
    """Tag indices and split of each image (None without a row, or a split), and the rows that were skipped.

    A table with one tag a row may have several rows for an image: its tags are all of theirs. Raises DataError on
    unknown tags, on other rows that disagree about one image, and when no row fits an image.
    """
    index, position = NameIndex(images, bases, str(path)), {name: i for i, name in enumerate(classes)}
    problems = [Problem(path.name, doubt) for doubt in table.doubts]
    hits = [index.exact(row.name) for row in table.rows]
    taken = {hit for hit in hits if hit is not None}
    groups: dict[int, list[Row]] = {}
    for row, hit in zip(table.rows, hits):
        hit = index.find(row.name, taken) if hit is None else hit
        if hit is None:
            problems.append(Problem(row.name, f"{path.name}, line {row.line}: no such image"))
        else:
            groups.setdefault(hit, []).append(row)
    if not groups:
        name = table.rows[0].name if table.rows else "(no rows)"
        raise DataError(
            f"{path}: no row names an image below {bases[0]} (the first is '{name}', the first image "
            f"'{images[0].relative_to(bases[0])}'). Set data.images to the folder that the rows "
            f"name them from.{' '.join(['', *table.doubts])}"
        )
    tags: list[tuple[int, ...] | None] = [None] * len(images)
    roles: list[str | None] = [None] * len(images)
    united = _one_object_a_row(table, groups)
    for hit, rows in groups.items():
        first = rows[0]
        for row in rows[1:]:
            _check_twin(first, row, united, path)
            if not united:
                problems.append(Problem(row.name, f"{path.name}: line {row.line} repeats line {first.line}"))
        found = {i for row in rows for i in tag_indices(row.tags, position, f"{path}, line {row.line}")}
        tags[hit], roles[hit] = tuple(sorted(found)), first.role
    if united:
        several = sum(len(rows) > 1 for rows in groups.values())
        problems.append(Problem(path.name, f"{several} photos have several rows: their tags are united"))
    return tags, roles, [*problems, *index.notes()]


def _one_object_a_row(table: TagTable, groups: Mapping[int, list[Row]]) -> bool:
    """Whether several rows of a photo are objects in it: one tag a row, one name, and not of a stray photo only."""
    several = [rows for rows in groups.values() if len(rows) > 1 and len({row.name for row in rows}) == 1]
    mixed = [rows for rows in groups.values() if len({row.tags for row in rows}) > 1]
    single = table.columns is None and all(len(row.tags) <= 1 for row in table.rows)
    alike = all(row.tags and row.name == rows[0].name for rows in mixed for row in rows)
    return bool(several) and single and alike and MANY * len(several) >= len(groups)


def _check_twin(first: Row, row: Row, united: bool, path: Path) -> None:
    where = f"{path}: lines {first.line} and {row.line}"
    if set(row.tags) != set(first.tags) and not united:
        raise DataError(f"{where} give '{row.name}' different tags; keep one of them, or join their tags.")
    if row.role != first.role:
        raise DataError(
            f"{where} put '{row.name}' into {first.role or 'no split'} and {row.role or 'no split'}; keep one."
        )


def tag_indices(tags: Iterable[str], position: Mapping[str, int], where: str) -> tuple[int, ...]:
    """Indices of tags, ascending. position: index by class. Raises DataError on a tag that is no class."""
    for tag in tags:
        if tag not in position and tag.lower() in BACKGROUND:
            raise DataError(f"{where}: '{tag}' is no class. For a photo with none of the classes leave the tags empty.")
        if tag not in position:
            raise DataError(f"{where}: '{tag}' is not a class.{nearest(tag, position)}")
    return tuple(sorted({position[tag] for tag in tags}))
