"""``tagmask check``: what is in the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tagmask.config import RunConfig
from tagmask.data import Collection
from tagmask.files import write_json
from tagmask.label.share import led
from tagmask.workflow.opened import open_collection, shared_fingerprint


def check(config: RunConfig, save: Path) -> tuple[Collection, dict[str, Any]]:
    """The data that a configuration names, and its ``fingerprint``, which is written to ``save``.

    Processes that check the same data for the same file share the photos; see ``led`` for what those that help raise.
    """

    def lead(over: bool) -> tuple[Collection, dict[str, Any]]:
        collection = open_collection(config)
        found = shared_fingerprint(collection, config)
        write_json(save, found)
        return collection, found

    if save.exists() and not save.is_file():  # a device or a pipe, which nobody shares
        return lead(False)
    work = {"verb": "check", "config": config.model_dump(mode="json")}
    return led(save.with_name(f".{save.name}.check"), work, lead)
