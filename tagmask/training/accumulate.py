"""A batch in parts (``train.accumulate``): sums over all of it are known before its first part is differentiated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

import torch
from torch import Tensor

from tagmask import comm
from tagmask.errors import TrainingError


def rehearse(parts: Sequence[Callable[[], object]], buffers: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The sums over the batch that its parts ask for (``comm.all_sum``), in their order.

    The parts run without gradient, one at a time: each up to its next sum, and on once all have come to it. None
    notices the others: each begins with the buffers and random numbers that there are, which are so again afterwards.
    """
    before = [buffer.clone() for buffer in buffers]
    players = [_Player(part, len(parts), buffers, before, device) for part in parts]
    sums: list[Tensor] = []
    state = _random(device)
    try:
        values = [players[0].go_on(None)]
        if values[0] is not None:  # else no part asks for anything
            values += [player.go_on(None) for player in players[1:]]
        while any(value is not None for value in values):
            if any(value is None for value in values):
                raise RuntimeError("The parts of a batch asked for different sums.")
            sums.append(comm.over_processes(torch.stack([value for value in values if value is not None]).sum(0)))
            values = [player.go_on(sums[-1]) for player in players]
    finally:
        for player in players:
            player.end()
        restore(buffers, before)
        _set_random(device, state)
    return sums


def known(sums: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """What gives a part the sums of a rehearsal, one after the other, when it asks for its sums with gradient."""
    following = iter(sums)

    def total(value: Tensor) -> Tensor:
        if value.requires_grad:
            raise TrainingError(
                "A loss needs the gradient of a mean over the whole batch, which a part of it does not have; set "
                "train.accumulate=1 (for method 'tscd': or method.detach=true)."
            )
        return next(following)

    return total


class _Player:
    """A part that runs in a thread of its own, while nothing else does, and rests where it asks for a sum."""

    def __init__(
        self,
        part: Callable[[], object],
        parts: int,
        buffers: Sequence[Tensor],
        before: Sequence[Tensor],
        device: torch.device,
    ) -> None:
        self.part, self.parts = part, parts
        self.buffers, self.seen, self.device = buffers, before, device
        self.random = _random(device)
        self.turn, self.rest = threading.Semaphore(0), threading.Semaphore(0)
        self.asked: Tensor | None = None
        self.given: Tensor | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.thread = threading.Thread(target=self._run, daemon=True)

    def go_on(self, given: Tensor | None) -> Tensor | None:
        """Run up to the next sum, from the one that is given; what is to be summed, or None at the end."""
        self.given, self.asked = given, None
        restore(self.buffers, self.seen)
        _set_random(self.device, self.random)
        if self.thread.ident is None:
            self.thread.start()
        else:
            self.turn.release()
        self.rest.acquire()
        self.seen, self.random = [buffer.clone() for buffer in self.buffers], _random(self.device)
        if self.error is not None:
            raise self.error
        return self.asked

    def end(self) -> None:
        """Leave the part where it rests."""
        self.cancelled = True
        self.turn.release()
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        try:
            with torch.no_grad(), comm.accumulating(self.parts, self._total):
                self.part()
        except CancelledError:
            pass
        except BaseException as error:  # it is raised in the thread that waits
            self.error = error
        self.asked = None
        self.rest.release()

    def _total(self, value: Tensor) -> Tensor:
        self.asked = value
        self.rest.release()
        self.turn.acquire()
        if self.cancelled:
            raise CancelledError
        assert self.given is not None
        return self.given


def restore(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Put values of the same shapes into buffers."""
    with torch.no_grad():
        for buffer, value in zip(buffers, values):
            buffer.copy_(value)


def _random(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
