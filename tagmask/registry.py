"""Registries: a name, a constructor, and a listing by wildcard. One for each kind of exchangeable part."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from tagmask.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to parts. The room that holds the parts is imported at the first look-up.

    Packages outside tagmask add parts through an entry point in the group of the room's name
    (``tagmask.methods``, for example), or by importing the module that registers them.
    """

    def __init__(self, kind: str, room: str) -> None:
        self.kind = kind
        self.room = room
        self._parts: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters a part under ``name``. Raises ConfigError when the name is taken."""

        def enter(part: T) -> T:
            other = self._parts.get(name)
            if other is not None and getattr(other, "__module__", None) != getattr(part, "__module__", None):
                raise ConfigError(f"{self.kind} '{name}' is registered twice; give one of them another name.")
            self._parts[name] = part
            return part

        return enter

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            importlib.import_module(self.room)
            for point in entry_points(group=self.room):
                point.load()

    def get(self, name: str) -> T:
        """The part called ``name``. Raises ConfigError that names the nearest known one."""
        self._load()
        if name not in self._parts:
            raise ConfigError(f"Unknown {self.kind} '{name}'.{nearest(name, self._parts)}")
        return self._parts[name]

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell wildcard, sorted."""
        self._load()
        return sorted(fnmatch.filter(self._parts, pattern))


METHODS: Registry = Registry("method", "tagmask.methods")
SOURCES: Registry = Registry("data source", "tagmask.data")
HEADS: Registry = Registry("head", "tagmask.heads")
REFINERS: Registry = Registry("refinement", "tagmask.refine")
