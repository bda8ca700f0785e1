"""A watch over the classification loss: it sees a training that a too high learning rate has broken."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from tagmask.config import RunConfig
from tagmask.data import Item, tag_vector
from tagmask.training.step import mean_of
from tagmask.types import Losses

TERM = "cls"
"""Name of the loss term that is watched."""
ABOVE, BACK, LEARNED = 1.5, 1.08, 0.9
"""A mean loss is lost when it is ABOVE times chance, or BACK times the lowest at ZERO; until LEARNED times chance."""
ZERO = 0.98
"""Share of the loss of scores of 0, which an untrained and a dead network have: but for a margin it is that loss."""
SHARE, LOWER, RESTARTS = 5, 3, 2
"""A training is lost once a fifth of its steps was; a restart divides the rate by three; there are two at most."""
FEWEST, SHORTEST = 30, 5
"""Steps of a training, and of a mean, below which these say nothing."""


class Watch:
    """Takes a training back to its start, at a lower learning rate, when its classification loss is lost.

    The rule. *Chance* is the loss of constant scores, each class's the share of photos that have it. The *mean loss* is
    taken over the last twentieth of the steps, and over five at least. It is lost when it rises to one and a half times
    chance (or, where that is more, one and a half times the lowest mean so far), or back to that of scores of 0, ln 2
    (with a softmax over C classes ln C); it stays so until it is a tenth below chance. A loss that falls slowly, or
    never, is not lost by this: a lower rate would not help it. The *training* is lost when the mean loss was in a fifth
    of the steps, those of the rate's warm-up not counted, or when a loss or gradient is not finite. It then begins
    again at a third of the rate, twice at most. Lost once more it goes on as it is, and so does one whose configuration
    is complete (``plan: false``), but it is said once. Nothing is watched in a training of fewer than 30 steps, where
    no loss is called 'cls', and where all photos have the same tags.

    items: training photos. parts: what a restart takes back to what it is now: modules and optimisers by name. The
    watch's own state belongs into checkpoints: a resumed training then restarts where an uninterrupted one does.
    """

    def __init__(self, config: RunConfig, items: Sequence[Item], classes: int, parts: Mapping[str, Any]) -> None:
        self.train = config.train
        softmax = getattr(config.method, "cls_loss", None) == "softmax"
        self.chance = constant_loss([item.tags for item in items if item.tags is not None], classes, softmax)
        self.zero = ZERO * math.log(classes if softmax else 2)
        self.restarts: list[dict[str, Any]] = []
        self._again = self._told = False
        self._parts, self._begin = parts, {}
        self._watches = self.train.steps >= FEWEST and self.chance > 0
        if self._watches and config.plan:
            self._begin = {name: copy.deepcopy(_on_cpu(part.state_dict())) for name, part in parts.items()}
        self._forget()

    def _forget(self) -> None:
        self._recent: list[float] = []
        self._lowest, self._is_lost, self._lost = math.inf, False, 0

    @property
    def factor(self) -> float:
        """Of the learning rates: 1, a third or a ninth."""
        return float(LOWER) ** -len(self.restarts)

    @property
    def may_restart(self) -> bool:
        """Whether a training that is lost now begins again."""
        return bool(self._begin) and bool(self._recent) and len(self.restarts) < RESTARTS

    def steps(self, start: int) -> Iterator[int]:
        """Numbers of the steps from ``start`` on; from 0 on again after a restart."""
        step = start
        while step < self.train.steps:
            yield step
            step, self._again = 0 if self._again else step + 1, False

    def lost(self, step: int, parts: Sequence[Losses] | None) -> dict[str, Any] | None:
        """Take the losses of step number ``step``, None where they are not finite. Where that is lost: a record of it.

        at: steps made; chance; loss: the mean, where there is one. All processes have to call it, and get the same.
        """
        if not self._watches or self._told:
            return None
        found = {"at": step + 1, "chance": self.chance}
        if parts is None:
            return found
        if TERM not in parts[-1].terms:
            self._watches = False
            self._begin.clear()
            return None
        length = max(SHORTEST, self.train.steps // 20)
        self._recent = [*self._recent, mean_of([p.terms[TERM] for p in parts])][-length:]
        loss = sum(self._recent) / len(self._recent)
        if loss > max(BACK * self._lowest, min(ABOVE * max(self._lowest, self.chance), self.zero)):
            self._is_lost = True
        elif loss < LEARNED * self.chance:
            self._is_lost = False
        self._lowest = min(self._lowest, loss)
        self._lost += self._is_lost and step >= self.train.warmup
        if self._lost * SHARE < self.train.steps:
            return None
        self._told = not self.may_restart
        return found | {"loss": loss}

    def restart(self, record: Mapping[str, Any]) -> None:
        """Take the training back to its start, at a third of the rate. record: what ``lost`` gave."""
        for name, state in self._begin.items():
            self._parts[name].load_state_dict(copy.deepcopy(state))
        self._forget()
        self._again = True
        self.restarts.append(dict(record))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold of it."""
        return {name: getattr(self, name) for name in ("restarts", "_told", "_recent", "_lowest", "_is_lost", "_lost")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        for name, value in state.items():
            setattr(self, name, value)


def describe(record: Mapping[str, Any], steps: int, rate: float | None) -> str:
    """One line on a training of ``steps`` that is lost. rate: it begins again at this rate; None: it goes on."""
    what = "a loss or gradient is not finite"
    if "loss" in record:
        what = f"the classification loss is {record['loss']:.2f}, and constant scores have {record['chance']:.2f}"
    then = "It goes on. Train again, into another folder, with a lower train.lr."
    if rate is not None:
        then = f"It begins again at a third of the rate, {rate:.3g}."
    return f"Training is lost at step {record['at']} of {steps}: {what}. {then}"


def constant_loss(tags: Sequence[Sequence[int]], classes: int, softmax: bool = False) -> float:
    """Multi-label soft margin loss of constant scores, each class's the share p of photos with its tag, ≥ 0.

    It is the mean over classes of −p·ln p − (1−p)·ln(1−p), and of a softmax the sum of −p·ln p: the lowest loss without
    looking at the photos. tags: class indices of each photo. 0 where a tag is on all photos or none, for all classes.
    """
    if not tags:
        return 0.0
    share = torch.stack([tag_vector(t, classes) for t in tags]).double().mean(0)
    if softmax:
        return float(torch.special.entr(share).sum())
    return float((torch.special.entr(share) + torch.special.entr(1 - share)).mean())


def _on_cpu(state: Any) -> Any:
    """A state with its tensors in ordinary memory, for a copy that takes none of a GPU's."""
    if isinstance(state, torch.Tensor):
        return state.cpu()
    if isinstance(state, Mapping):
        return {key: _on_cpu(value) for key, value in state.items()}
    return state
