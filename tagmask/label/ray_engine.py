"""Masks of many photos by Ray Data: workers on one or many machines, each with the networks, take blocks of photos.

A worker does with a block what the local engine does: ``go_over`` and ``LabelWriter.add``. It reads its photos and
writes their masks by itself, so that only names and counts pass through Ray. A worker holds few photos at a time, and
Ray hands out a block only when a worker has room for it: memory does not grow with the number of photos.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from tagmask.data import Item
from tagmask.data.pixels import Notes
from tagmask.errors import ConfigError, TagmaskError
from tagmask.label.infer import Inference
from tagmask.label.look import Ahead, MaskPass, go_over, shown
from tagmask.label.share import Blocks
from tagmask.label.writer import LabelWriter
from tagmask.use_config import EngineConfig

TRIES = 3
"""How often a block is begun: if its worker is lost each time, its photos are given up."""
STORE = 256 * 2**20
"""Bytes of shared memory for names and counts, where tagmask starts Ray; the networks come on top."""


def check_engine(engine: EngineConfig) -> None:
    """Raise ConfigError where the engine is not installed."""
    if engine.name == "ray":
        _ray()


def _ray() -> Any:
    """Ray, with its data library."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when it is imported
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError("engine.name=ray needs Ray: pip install 'tagmask[ray]'.") from error
    return ray


@dataclass
class Job:
    """What all workers do: the networks, and what makes a photo's labels of them and writes these. ahead: as in
    ``go_over``."""

    inference: Inference
    writer: LabelWriter
    ahead: Ahead

    def packed(self) -> bytes:
        """The job as bytes, which ``unpacked`` opens on any device."""
        from ray import cloudpickle

        file = io.BytesIO()
        torch.save(self, file, pickle_module=cloudpickle)
        return file.getvalue()

    def make(self, items: Sequence[Item], time: int = 1) -> Any:
        """Make the masks of a block's photos. Returns what the block gave, as ``MaskPass.merge`` takes it.

        time: 1 for the first try, 2 for the second, and so on; after TRIES the photos fail.
        """
        writer, notes = self.writer.of(items), Notes()
        if time <= TRIES:
            go_over(self.inference, writer.todo, [writer.add], "", Console(quiet=True), notes, self.ahead)
        else:
            why = f"its worker was lost {TRIES} times. Is memory short? Ask for fewer workers (engine.workers)."
            writer.done.failed = [(str(item.image), f"{item.image}: {why}") for item in writer.todo]
        return [writer.state(), notes]


def unpacked(data: bytes, device: str) -> Job:
    """A job that ``packed`` gave, with its networks on the device.

    It is a pickle, as all that Ray hands over: only processes of this Ray can have written it, never a file of a user.
    """
    return torch.load(io.BytesIO(data), map_location=device, weights_only=False)


class Begun:
    """A small process that counts how often each block was begun."""

    def __init__(self) -> None:
        self.times: Counter[int] = Counter()

    def again(self, block: int) -> int:
        self.times[block] += 1
        return self.times[block]


class Worker:
    """A process with the networks. job: where Ray has it; begun: a ``Begun``; folder: that relative paths start from;
    threads: of torch."""

    def __init__(self, job: list[Any], begun: Any, folder: str, threads: int) -> None:
        import ray

        with suppress(OSError):  # on another machine it may not be there, nor needed
            os.chdir(folder)
        torch.set_num_threads(threads)
        self.device = "cuda" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"
        self.job = unpacked(ray.get(job[0]), self.device)
        self.begun = begun

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[bytes]]:
        import ray

        number, items = pickle.loads(rows["block"][0])
        state = self.job.make(items, ray.get(self.begun.again.remote(number)))
        return {"made": [pickle.dumps((number, state, (socket.gethostname(), os.getpid(), self.device)))]}


def spread(work: MaskPass) -> None:
    """Go through a pass by workers of Ray, and merge what its blocks gave. The writer gets a manifest.

    Ray is that of the environment (RAY_ADDRESS), or one that this process started; otherwise one of this machine is
    started and stopped again. A block whose worker is lost is made again, by another one. Raises ConfigError where Ray
    is not installed or cannot give what a worker asks for, and what ``LabelWriter.add`` raises.
    """
    ray, writer, console = _ray(), work.writer, work.console or Console(stderr=True)
    writer.sums = writer.sums or {}
    every = enumerate([item for item in items if writer.wants(item)] for items in Blocks(work.items, None).of)
    blocks = {number: items for number, items in every if items}
    if not blocks:
        return
    bare = writer.of([])
    bare.folder = bare.folder.absolute()
    states: dict[int, Any] = {}
    workers: set[tuple[str, int, str]] = set()
    with _connected(ray, Job(work.inference, bare, work.ahead).packed()) as (job, started):
        made = _made(ray, blocks, job, work.inference.engine, started, console)
        for number, state, worker in shown(made, len(blocks), work.title, console):
            states[number] = state
            workers.add(worker)
    for number in blocks:
        work.merge(states[number])
    hosts, devices = len({host for host, *_ in workers}), ", ".join(sorted({device for *_, device in workers}))
    photos = sum(map(len, blocks.values()))
    said = f"{work.title}: {photos} photos by {len(workers)} workers of Ray on {hosts} machines ({devices})"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def _made(
    ray: Any, blocks: Mapping[int, Sequence[Item]], job: Any, engine: EngineConfig, started: bool, console: Console
) -> Iterator[tuple[int, Any, tuple[str, int, str]]]:
    """Number, state and worker of each block, as they are done."""
    pool, gpus = _pool(ray.nodes(), engine, started, console)
    begun = ray.remote(num_cpus=0)(Begun).remote()
    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = settings.print_on_execution_start = False
    rows = [{"block": pickle.dumps(block)} for block in blocks.items()]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=([job], begun, os.getcwd(), max(1, int(engine.cpus))),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool, initial_size=pool),
        num_cpus=engine.cpus,
        num_gpus=gpus,
    )
    try:
        for row in data.iter_rows():
            yield pickle.loads(row["made"])
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, TagmaskError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise cause or error from error


def _pool(nodes: list[dict[str, Any]], engine: EngineConfig, started: bool, console: Console) -> tuple[int, float]:
    """How many workers there may be at once, and the GPUs of each. started: whether Ray runs here for us alone.

    Raises ConfigError where this machine cannot give what a worker asks for. A cluster may grow: a line says so.
    """
    there = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = engine.gpus if engine.gpus is not None else float(any(node.get("GPU") for node in there))
    fitting = 0
    for node in there:
        room = int(node.get("CPU", 0) / engine.cpus + 1e-6)
        fitting += room if not gpus else min(room, int(node.get("GPU", 0) / gpus + 1e-6))
    if not fitting:
        asked = f"a worker asks for {engine.cpus:g} CPUs and {gpus:g} GPUs (engine.cpus, engine.gpus)"
        if started:
            raise ConfigError(f"{asked}, which this machine has not. Ask for less.")
        console.print(f"Ray has no machine now that fits: {asked}. It waits for one.", style="yellow", highlight=False)
    return min(fitting, engine.workers) if engine.workers and fitting else engine.workers or max(1, fitting), gpus


@contextmanager
def _connected(ray: Any, job: bytes) -> Iterator[tuple[Any, bool]]:
    """The job where workers of Ray find it, and whether Ray was started for it here, to be stopped again."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    started = ours and not os.environ.get("RAY_ADDRESS")
    ends = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_worker_niceness", "0")  # else workers come after all other processes (15)
    here = {"address": "local", "include_dashboard": False, "object_store_memory": STORE + 2 * len(job)}
    try:
        if ours:
            ray.init(logging_level="error", **(here if started else {}))
    except Exception as error:  # of many kinds: no such cluster, a busy machine, another version there
        raise ConfigError(f"Ray cannot be {'started' if started else 'reached'} ({error}).") from error
    if ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ends)  # Ray's own would end the process before anything is closed
    try:
        yield ray.put(job), started
    finally:
        if ours:
            ray.shutdown()
