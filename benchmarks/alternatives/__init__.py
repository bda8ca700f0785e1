"""Cases of ``benchmarks/ops.py``: each operator of tagmask beside what people use instead.

One module for each family of operators. A module is found by lying here; it has one function, ``cases() ->
list[Case]``, and imports an alternative's package inside the form that needs it, so that the runner works without it:

    from alternatives import Case

    def cases() -> list[Case]:
        return [
            Case(
                operator="walk",                       # what --operators selects
                name="photo",                          # what --cases selects; once for each operator
                shape="21x94x125, 256 steps",          # for the reader
                forms={"ours": ours, "dense": dense},  # 'ours' first, then the alternatives
                target=">= 100x dense",                # printed beside the result, '' where none is set
            )
        ]

    def ours(device: torch.device) -> Callable[[], Tensor]:
        maps, edges, weights = inputs(device)          # outside of time and memory
        return lambda: random_walk(maps, edges, weights, steps=256, beta=10)

The outer call makes the inputs, by a fixed seed and alike for all forms, and calls its function once on *small* inputs
where something is loaded or compiled at the first call: neither shall count. The inner call is what is timed: it must
do all the work at every call (no result kept from the call before) and return its result as a tensor, or an empty one
where it is a yardstick that computes something else. An alternative that has no version for the device computes on
the CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Form = Callable[[torch.device], Callable[[], Tensor]]


@dataclass(frozen=True)
class Case:
    """One operator on one input.

    missing: packages that alternatives of this case need and that are not installed; ``forms`` leaves those out.
    compare: whether the results of all forms are the same quantity, so that the largest difference is shown.
    """

    operator: str
    name: str
    shape: str
    forms: dict[str, Form]
    target: str
    missing: tuple[str, ...] = field(default=())
    compare: bool = True


def with_optional(forms: dict[str, Form], optional: dict[str, tuple[str, Form]]) -> dict:
    """``forms`` and ``missing`` of a Case. optional: by the form's name, (module to import, form).

    Case("crf", "afa", shape, target=target, **with_optional({"ours": ours}, {"pydensecrf2": ("pydensecrf", old)}))
    """
    found = {name: form for name, (module, form) in optional.items() if importlib.util.find_spec(module)}
    missing = tuple(sorted({module for module, _ in optional.values() if not importlib.util.find_spec(module)}))
    return {"forms": forms | found, "missing": missing}
