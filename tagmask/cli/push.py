"""``tagmask push``: a run's model to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask push runs/first user/name`")
def push(
    run: common.RunPath,
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="of the model on the hub")],
    public: Annotated[bool, typer.Option("--public", help="anybody may see it; else only you")] = False,
    pictures: Annotated[
        list[str] | None, typer.Option(metavar="PHOTO", help="photo that the card shows with its mask; repeatable")
    ] = None,
    license: Annotated[str | None, typer.Option(help="of the model, as the hub spells it, such as mit")] = None,
) -> None:
    """Send the model and its card to the Hugging Face hub. The card has scores and counts, and no file's name."""
    import tagmask

    segmenter = tagmask.load(run)
    common.say(segmenter.push_to_hub(name, not public, pictures or (), license=license))
