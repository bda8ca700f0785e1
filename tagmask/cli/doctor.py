"""``tagmask doctor``: what this installation and machine can do."""

from __future__ import annotations

import os

from rich.table import Table

from tagmask.cli import common


@common.app.command(epilog="Example: `tagmask doctor`")
def doctor(json: common.Json = False) -> None:
    """Versions, devices, precision, and where pretrained weights are looked for."""
    import torch

    from tagmask.refine.lattice import kernels
    from tagmask.training import environment
    from tagmask.workflow.plan import fast_bf16

    found = environment()
    found["threads"] = torch.get_num_threads()
    found["fast_bf16"] = fast_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    found["compiled_crf"] = "yes" if kernels() is not None else "no (slower): pip install 'tagmask[fast]'"
    found["TAGMASK_WEIGHTS"] = os.environ.get("TAGMASK_WEIGHTS", "not set")
    if json:
        common.print_json(found)
        return
    table = Table(box=None, show_header=False)
    for key, value in {**found.pop("versions"), **found}.items():
        table.add_row(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    common.screen().print(table)
