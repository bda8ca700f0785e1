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
    archives: Annotated[
        Path | None, typer.Option(help="folder of downloads: only compare known archives with their published MD5")
    ] = None,
    save: Annotated[Path, typer.Option(help="JSON file that the fingerprint is saved in")] = Path("fingerprint.json"),
    suspects: Annotated[
        bool, typer.Option("--suspects", help="list tags that are probably wrong in suspects.csv, beside --save")
    ] = False,
    encoder: common.Encoder = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 if a file or line is left out")] = False,
    json: common.Json = False,
) -> None:
    """Count, measure and open every file; list what is wrong with the data. Exits with 1 if no image can be read.

    With --suspects a pretrained encoder looks at the photos, too, and tags that do not fit what it sees are listed.
    Pascal VOC 2012, COCO and CUB-200-2011 are recognised and their lists compared with the published numbers. With
    --archives only the archives are looked at; exits with 1 if one is not as published.
    """
    from tagmask import workflow
    from tagmask.config import load_config
    from tagmask.data import clean, print_fingerprint
    from tagmask.data.benchmarks import check_archives
    from tagmask.errors import DataError
    from tagmask.workflow.suspects import check_tags, print_suspects

    if archives is not None:
        rows = check_archives(archives)
        if json:
            common.print_json(rows)
        for row in rows if not json else ():
            common.say(f"{row['archive']}: {row['what'] or 'as published'} ({row['md5']})")
        raise typer.Exit(0 if all(row["whole"] for row in rows) else 1)
    values, overrides = common.settings(words, tags, masks, encoder=encoder)
    config = load_config(*(configs or []), values, overrides=overrides)
    collection, found = workflow.check(config, save)
    if json:
        common.print_json(found)
    else:
        print_fingerprint(found, common.screen())
        common.say(f"saved: {save}")
    readable = clean(collection, found)
    if suspects:
        console = None if json else common.screen()
        listed = check_tags(readable, config, save.with_name("suspects.csv"), console)
        if not json:
            print_suspects(listed, common.screen())
    lost = sum(found["counts"][kind] for kind in ("unreadable", "bad_masks", "problems"))
    if strict and lost:
        raise DataError(f"{collection.root}: {lost} files or lines cannot be used as they are (--strict).")
