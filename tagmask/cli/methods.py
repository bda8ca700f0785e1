"""``tagmask methods``: what can be trained."""

from __future__ import annotations

from typing import Annotated

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

    if encoders is not None:
        names = tagmask.list_encoders(encoders)
        if json:
            common.print_json(names)
        else:
            common.screen().print("\n".join(names), highlight=False)
        return
    if name is None:
        about = {n: _first_line(METHODS.get(n)) for n in METHODS.names()}
        if json:
            common.print_json(about)
        else:
            table = Table("method", "what it does", box=None)
            for row in about.items():
                table.add_row(*row)
            common.screen().print(table)
        return
    fields = METHODS.get(name).config_class.model_fields
    if json:
        common.print_json({k: {"default": f.get_default(), "about": f.description} for k, f in fields.items()})
        return
    table = Table("setting", "default", "", box=None)
    for key, field in fields.items():
        table.add_row(f"method.{key}", repr(field.get_default(call_default_factory=True)), field.description or "")
    common.screen().print(table)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]
