"""``tagmask methods``: what can be trained."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask methods baseline`")
def methods(
    name: Annotated[str | None, typer.Argument(help="show this method's settings")] = None,
    encoders: Annotated[str | None, typer.Option(help="list encoders that match a wildcard instead")] = None,
    json: common.Json = False,
) -> None:
    """List methods, the settings of one, or the encoders they run on."""
    import tagmask
    from tagmask.registry import METHODS

    shown: Any
    found: Any
    if encoders is not None:
        found = tagmask.list_encoders(encoders)
        shown = "\n".join(found)
    elif name is None:
        found = {name: (METHODS.get(name).__doc__ or "").strip().splitlines()[0] for name in METHODS.names()}
        shown = Table("method", "what it does", box=None)
        for row in found.items():
            shown.add_row(*row)
    else:
        found = {
            key: {"default": field.get_default(call_default_factory=True), "about": field.description}
            for key, field in METHODS.get(name).config_class.model_fields.items()
        }
        shown = Table("setting", "default", "", box=None)
        for key, field in found.items():
            shown.add_row(f"method.{key}", repr(field["default"]), field["about"] or "")
    if json:
        common.print_json(found)
    else:
        common.screen().print(shown, highlight=False)
