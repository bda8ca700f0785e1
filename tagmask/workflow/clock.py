"""Minutes of what is done one after the other."""

from __future__ import annotations

import time


class Clock:
    """``with clock("train"):`` enters the minutes that it took into ``minutes``."""

    def __init__(self, minutes: dict[str, float] | None = None) -> None:
        self.minutes = {} if minutes is None else minutes
        self.name, self.began = "", 0.0

    def __call__(self, name: str) -> Clock:
        self.name = name
        return self

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.minutes[self.name] = round((time.perf_counter() - self.began) / 60, 3)
