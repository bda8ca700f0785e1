"""YAML of strangers, read within bounds: plain values only, and words and numbers as they were typed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tagmask.errors import ConfigError, DataError
from tagmask.files import read_text

LARGEST = 500_000
"""Bytes of a YAML file, at most."""
DEEPEST = 30
"""Lists and mappings within each other, at most."""
WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
"""What is no text unless it is quoted, besides numbers. As in YAML 1.2, yes, no, on and off are text."""
WHOLE = re.compile(r"[-+]?[0-9]{1,40}")
NUMBER = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,4})?")


class _Typed:
    """A number that knows how it was typed, for where text is asked for: a class may be called 007 or 1.50."""

    text: str

    def __new__(cls, text: str) -> Any:
        number: Any = super().__new__(cls, text)  # type: ignore[call-arg]
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


class _Whole(_Typed, int):
    """A whole number."""


class _Number(_Typed, float):
    """A number with a point or an exponent."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that this file or YAML 1.1 would read as a number or a word of its own."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+.0123456789"))


def plain_value(text: str) -> Any:
    """What an unquoted word stands for: nothing, true or false, a number, or itself."""
    if text in WORDS:
        return WORDS[text]
    return _Whole(text) if WHOLE.fullmatch(text) else _Number(text) if NUMBER.fullmatch(text) else text


def parse_yaml(text: str, name: str | Path) -> Any:
    """The value of a YAML text. Aliases, tags, keys that are there twice and deep nesting are refused.

    name: of the file or setting, for the error. Raises ConfigError.
    """
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        next(events)  # the stream's start
        if isinstance(next(events), yaml.StreamEndEvent):
            return None
        value = _value(events, next(events), 0)
        next(events)  # the document's end
        if isinstance(after := next(events), yaml.DocumentStartEvent):
            raise _fault("a second document begins; there may be one", after)
        return value
    except yaml.YAMLError as error:
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "unknown"
        within = getattr(error, "context", None)
        start = f" ({within}{_place(text, error, 'context_mark')})" if within else ""
        where = _place(text, error, "problem_mark")
        raise ConfigError(f"{name}: not valid YAML{where}: {what}{start}.") from error


def read_yaml_file(path: Path) -> Any:
    """The value of a YAML file in UTF-8. Raises ConfigError that names the file."""
    if not os.path.isfile(path):  # unlike Path.is_file, it takes names of any length
        what = "a folder" if os.path.isdir(path) else "no regular file" if os.path.exists(path) else "no such file"
        raise ConfigError(f"{path}: {what}; a YAML file is expected.")
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: larger than {LARGEST} bytes, which no configuration is.")
        text = read_text(path)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return parse_yaml(text, path)


def to_yaml(value: Any) -> str:
    """YAML of plain values, which ``parse_yaml`` and other readers read back the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _value(events: Iterator[Any], event: Any, depth: int) -> Any:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise _fault("anchors (&) and aliases (*) are not read; write the value out, or put text in quotes", event)
    if event.tag is not None:
        raise _fault("tags (!) are not read; put text in quotes", event)
    if isinstance(event, yaml.ScalarEvent):
        if "\0" in event.value:
            raise _fault("a NUL character", event)
        return plain_value(event.value) if event.implicit[0] else event.value
    if depth == DEEPEST:
        raise _fault(f"more than {DEEPEST} lists and mappings within each other", event)
    if isinstance(event, yaml.SequenceStartEvent):
        values = []
        while not isinstance(inner := next(events), yaml.SequenceEndEvent):
            values.append(_value(events, inner, depth + 1))
        return values
    found: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent) or key.anchor or key.tag:
            raise _fault("a name is one word or text", key)
        if key.value in found:
            raise _fault(f"'{key.value[:100]}' is there twice", key)
        found[key.value] = _value(events, next(events), depth + 1)
    return found


def _place(text: str, error: yaml.YAMLError, mark: str) -> str:
    """The line of a mark that an error has, in words; nothing without one."""
    found, lines = getattr(error, mark, None), text.splitlines()
    if found is None or found.line >= len(lines):
        return ""
    return f" in line {found.line + 1} ('{lines[found.line].strip()[:60]}')"


def _fault(what: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
