"""Tables of tags: CSV and JSONL files to rows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tagmask.config import DataConfig
from tagmask.data.find import read_lines, resolve
from tagmask.data.formats import is_image
from tagmask.data.spelling import clean_name, refuse_control
from tagmask.data.table_cells import NO_YES, cell_tags, clean_tags, odd_tags, split_roles
from tagmask.errors import DataError
from tagmask.files import of_system, read_text

IMAGE_COLUMNS = (
    *("image", "file", "filename", "imagename", "imagepath", "imagefile", "filepath", "path", "img", "photo"),
    *("imageid", "id"),
)
TAG_COLUMNS = ("tags", "tag", "labels", "label", "classes", "class", "category", "categories")
SPLIT_COLUMNS = ("split", "subset", "partition")
"""What the columns are called, in lower case, without blanks and '_'; the first that is there is read."""
TABLE_NAMES = ("tags.csv", "tags.jsonl")
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
ARCHIVES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How the files of workbooks begin."""
UNNAMED = re.compile(r"(unnamed: ?\d+)?", re.I)
"""Columns without a name, as pandas writes them."""


@dataclass(frozen=True)
class Row:
    """One line of a table: its number, the image's name as written, its tags, and 'train', 'val', 'test' or None."""

    line: int
    name: str
    tags: tuple[str, ...]
    role: str | None = None


@dataclass(frozen=True)
class TagTable:
    """A table. columns: the class names where it is one-hot. doubts: what could have been meant otherwise."""

    rows: list[Row]
    columns: list[str] | None = None
    doubts: list[str] = field(default_factory=list)


def table_path(config: DataConfig, root: Path) -> Path | None:
    """``data.tags``, or else tags.csv or tags.jsonl in the root, in any case, or else None.

    Raises DataError where a workbook is there instead.
    """
    if config.tags is not None:
        return resolve(config.tags, root, "tags")
    there = {path.name: path for path in sorted(root.iterdir()) if path.stem.lower() == "tags" and path.is_file()}
    lower = {name.lower(): path for name, path in there.items()}
    for name in TABLE_NAMES:
        if name in lower:
            return there.get(name) or lower[name]
    for path in there.values():
        if path.suffix.lower() in WORKBOOKS:
            refuse_workbook(path)
    return None


def refuse_workbook(path: Path) -> None:
    """Raise DataError on a file of Excel, LibreOffice or Numbers, whatever it is called."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise of_system(error, path) from error
    if path.suffix.lower() in WORKBOOKS or begin in ARCHIVES:
        raise DataError(
            f"{path}: this is a workbook, which is not read. Save its sheet as 'CSV UTF-8' (File, Save As) and set "
            f"data.tags to that file, or call it {TABLE_NAMES[0]}."
        )


def read_table(path: Path, separator: str) -> TagTable:
    """Rows of a CSV or JSONL file, and the class names where the table is one-hot.

    CSV: a header is required, comma, semicolon or tab between columns, UTF-8 with or without a mark. One column
    (image, file, filename, path, id) names the image; tags stand in one column with ``separator`` between them or as
    a list of Python or JSON, or in one column a class with 0 and 1 (true and false, yes and no); a column 'split'
    holds train, val or test.
    JSONL: ``{"image": "a.jpg", "tags": ["cat"]}`` a line; a string of tags is read as a cell. Raises DataError with
    the line's number.
    """
    refuse_workbook(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_jsonl(path, separator)
    header, rows, delimiter = _cells(path)
    return _Csv(path, header, rows, delimiter, separator).table()


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], str]:
    """The header, the other lines with their numbers, and the sign between columns. Blank lines are left out."""
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}, line {line}: a zero byte. Save the table as 'CSV UTF-8'.")
    first = text.lstrip("\r\n").splitlines()[0] if text.strip() else ""
    delimiter = next((d for d in "\t,;" if d in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        table = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(c.strip() for c in row)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}). Look for a stray quote.") from error
    header = [clean_name(cell, f"{path}, line 1") for cell in table[0][1]] if table else []
    return header, table[1:], delimiter


def pick(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of ``names`` that are known, in the order of ``known``; case, blanks and '_' do not count."""
    short = {name: re.sub(r"[\s_-]", "", name.lower()) for name in names}
    return sorted((name for name in short if short[name] in known), key=lambda name: known.index(short[name]))


def doubt(found: Sequence[str], what: str) -> list[str]:
    """A sentence where several columns could be meant."""
    others = ", ".join(f"'{name}'" for name in found[1:])
    return [f"column '{found[0]}' is read for {what}, not {others}; remove or rename the wrong one."] if others else []


class _Csv:
    """The columns of one CSV file by what they hold."""

    def __init__(self, path: Path, header: list[str], rows: list[tuple[int, list[str]]], delimiter: str, sep: str):
        self.path, self.header, self.rows, self.separator = path, header, rows, sep
        names = pick(header, IMAGE_COLUMNS)
        if not names or len(header) < 2:
            raise DataError(
                f"{path}, line 1: the first line must name the columns, one of them {', '.join(IMAGE_COLUMNS[:3])}, "
                f"as in 'image,tags'; found '{delimiter.join(header)[:80]}'."
            )
        for i, name in enumerate(header):
            if name in header[:i] and not UNNAMED.fullmatch(name):
                raise DataError(f"{path}, line 1: column '{name}' is there twice; remove or rename one.")
        for line, cells in rows:
            if len(cells) != len(header):
                raise DataError(
                    f"{path}, line {line}: {len(cells)} columns, the header has {len(header)}. Put cells that hold "
                    f"'{delimiter}' in quotes, or separate tags by another sign (data.separator)."
                )
        # A class may be called 'photo', too.
        names = [names[0], *(name for name in names[1:] if not self._one_hot([header.index(name)]))]
        if not self._unique(header.index(names[0])):
            names.sort(key=lambda name: not (self._unique(header.index(name)) and self._files(header.index(name))))
        self.image = header.index(names[0])
        self.doubts = doubt(names, "the photo")
        for line, cells in rows:
            if not cells[self.image]:
                raise DataError(f"{path}, line {line}: no image is named.")
            refuse_control(cells[self.image], f"{path}, line {line}")
        splits = pick(header, SPLIT_COLUMNS)
        self.roles: list[str | None] = [None] * len(rows)
        if splits:
            column, wheres = header.index(splits[0]), [self._at(line) for line, _ in rows]
            self.roles, odd = split_roles([cells[column] for _, cells in rows], wheres, splits[0])
            self.doubts += odd or doubt(splits, "the split")
        aside = {self.image, *map(header.index, (*names, *splits))}
        self.others = [i for i in range(len(header)) if i not in aside and not self._unnamed(i)]

    def table(self) -> TagTable:
        """The rows: tags from their own column, or from one column a class."""
        tags = pick((self.header[i] for i in self.others), TAG_COLUMNS)
        several = len(self.others) > 1
        if not tags and not several and self.others and not self._one_hot(self.others):
            tags = [self.header[self.others[0]]]
        # A class may be called 'label': several columns that hold nothing but yes and no are one-hot all the same.
        if tags and not (several and self._one_hot(self.others)):
            return self._tagged(tags)
        return self._by_class()

    def _tagged(self, tags: list[str]) -> TagTable:
        column, rows = self.header.index(tags[0]), []
        for (line, cells), role in zip(self.rows, self.roles):
            found = cell_tags(cells[column], self.separator, self._at(line))
            rows.append(Row(line, cells[self.image], found, role))
        odd = odd_tags((tag for row in rows for tag in row.tags), tags[0])
        return TagTable(rows, None, [*self.doubts, *doubt(tags, "the tags"), *odd])

    def _by_class(self) -> TagTable:
        rows = []
        for (line, cells), role in zip(self.rows, self.roles):
            wrong = next((i for i in self.others if cells[i].lower() not in NO_YES), None)
            if wrong is not None:
                raise DataError(
                    f"{self._at(line)}: column '{self.header[wrong]}' holds '{cells[wrong]}'. Without a column called "
                    "'tags' each further column is a class and holds 0 or 1 (or true or false, or yes or no)."
                )
            found = tuple(self.header[i] for i in self.others if NO_YES[cells[i].lower()])
            rows.append(Row(line, cells[self.image], found, role))
        return TagTable(rows, [self.header[i] for i in self.others], self.doubts)

    def _at(self, line: int) -> str:
        return f"{self.path}, line {line}"

    def _one_hot(self, columns: Sequence[int]) -> bool:
        return all(cells[i].lower() in NO_YES for _, cells in self.rows for i in columns)

    def _unique(self, column: int) -> bool:
        return len({cells[column] for _, cells in self.rows}) == len(self.rows)

    def _files(self, column: int) -> bool:
        return all(is_image(cells[column]) for _, cells in self.rows)

    def _unnamed(self, column: int) -> bool:
        """Whether a column has no name: it is empty, or counts the rows. Raises DataError where it is neither."""
        if not UNNAMED.fullmatch(self.header[column]):
            return False
        full = [(line, cells[column]) for line, cells in self.rows if cells[column]]
        if full and not (len({cell for _, cell in full}) == len(self.rows) and all(c.isdigit() for _, c in full)):
            line, cell = full[0]
            raise DataError(f"{self._at(line)}: column {column + 1} has no name, but holds '{cell[:60]}'. Name it.")
        return True


def _read_jsonl(path: Path, separator: str) -> TagTable:
    rows, doubts = [], []
    cells: list[str] = []
    columns: list[str] = []
    for line, content in read_lines(path):
        where = f"{path}, line {line}"
        try:
            entry = json.loads(content, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error}).") from error
        entry = entry if isinstance(entry, Mapping) else {}
        names, found, splits = (pick(entry, known) for known in (IMAGE_COLUMNS, TAG_COLUMNS, SPLIT_COLUMNS))
        name, tags = entry[names[0]] if names else "", entry[found[0]] if found else None
        if isinstance(tags, str):
            tags = list(cell_tags(tags, separator, where))
        if not isinstance(tags, list) or not all(isinstance(part, str) for part in [name, *tags]) or not name.strip():
            raise DataError(f'{where}: expected {{"image": "a.jpg", "tags": ["cat", "dog"]}}.')
        refuse_control(name, where)
        rows.append(Row(line, name, clean_tags(tags, where)))
        cells.append(str(entry[splits[0]]) if splits else "")
        columns += splits[:1]
        doubts += [*doubt(names, "the photo"), *doubt(found, "the tags")]
    roles, odd = split_roles(cells, [f"{path}, line {row.line}" for row in rows], columns[0] if columns else "")
    rows = [replace(row, role=role) for row, role in zip(rows, roles)]
    return TagTable(rows, None, list(dict.fromkeys([*doubts, *odd])))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands twice would lose a value."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)
