"""``tagmask check``: look at the data before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask check photos --tags tags.csv`")
def check(
    words: common.Words = None,
    tags: common.Tags = None,
    masks: common.Masks = None,
    configs: common.Configs = None,
    save: Annotated[Path, typer.Option(help="JSON file that the fingerprint is saved in")] = Path("fingerprint.json"),
    json: common.Json = False,
) -> None:
    """Count, measure and open every file; list what is wrong with the data. Exits with 1 if no image can be read."""
    from tagmask.data import clean, fingerprint, print_fingerprint
    from tagmask.training import write_json
    from tagmask.workflow.runs import open_collection

    values, overrides = common.settings(words, tags, masks)
    config = common.build(configs, values, overrides)
    collection = open_collection(config)
    found = fingerprint(collection)
    write_json(save, found)
    if json:
        common.print_json(found)
    else:
        print_fingerprint(found, common.screen())
        common.screen().print(f"saved: {save}", highlight=False)
    clean(collection, found)
