"""Masks by workers of Ray are the local engine's, in folders and at URIs; a lost worker costs its block and no more."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tagmask.data import Item
from tagmask.data.photos import photo_items
from tagmask.errors import ConfigError, DataError
from tagmask.label import Inference, LabelWriter, Look
from tagmask.label.look import MaskPass
from tagmask.label.places import read_manifest
from tagmask.label.writer import Make
from tagmask.methods import build_method
from tagmask.use_config import EngineConfig
from tests.methods.contract import tiny

pytest.importorskip("ray")
from tagmask.label import ray_engine  # noqa: E402

CLASSES = ["a", "b", "c"]
RAY = EngineConfig(name="ray")


@pytest.fixture
def inference() -> Inference:
    config = tiny({"name": "cosa"})
    return Inference(build_method(config, len(CLASSES)), config)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Photos of different sizes, by URIs, of which '05' cannot be read and '07' is nearly black."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(14):
        random = np.random.default_rng(i)
        pixels = random.integers(0, 8 if i == 7 else 256, (6, 5 + i % 3, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((48 + i, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    (folder / "05.png").write_bytes(b"no picture")
    found, _ = photo_items([folder.as_uri()])
    return [Item(item.id, item.image, (i % 3,) if i % 4 else ()) for i, item in enumerate(found)]


def by_tags(item: Item, look: Look) -> tuple[Any, Any, Sequence[str]]:
    return *look.mask, ["background", *CLASSES]


def pass_to(
    out: str | Path,
    inference: Inference,
    items: Sequence[Item],
    engine: EngineConfig,
    make: Make = by_tags,
    **options: Any,
) -> MaskPass:
    """The pass after it was gone through."""
    inference.engine = engine
    writer = LabelWriter(Path(out), items, CLASSES, {"model": "drawn"}, make, **options)
    work = MaskPass(inference, writer, "masks", "logits", {}, Console(quiet=True))
    work.make("masks", {})
    return work


def files(folder: Path) -> dict[str, bytes]:
    """Masks, soft maps and notes of a folder, but for the manifest."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.csv"}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engine without Ray's processes: one block after the other. Gives the ids of the photos that are taken."""
    taken: list[str] = []

    @contextmanager
    def connected(ray: Any, job: bytes) -> Iterator[tuple[Any, bool]]:
        yield job, True

    def made(ray: Any, blocks: Mapping[int, Sequence[Item]], job: bytes, *_: Any) -> Iterator[Any]:
        opened = ray_engine.unpacked(job, "cpu")
        for number in reversed(blocks):
            taken.extend(item.id for item in blocks[number])
            yield number, opened.make(blocks[number]), ("here", 1, "cpu")

    monkeypatch.setattr(ray_engine, "_connected", connected)
    monkeypatch.setattr(ray_engine, "_made", made)
    return taken


@pytest.mark.parametrize("store", ["file", "memory"])
def test_masks_at_a_uri_are_those_in_a_folder_and_a_second_call_makes_what_lacks(
    store: str, inference: Inference, items: list[Item], in_process: list[str], tmp_path: Path
) -> None:
    import fsspec

    local = pass_to(tmp_path / "local", inference, items, EngineConfig(), soft=True)
    done, wanted = local.writer.finish(), files(tmp_path / "local")
    assert done.failed == [(str(items[5].image), done.failed[0][1])] and local.notes is not None
    assert list(local.notes.values()) == [[str(items[7].image)]] and len(wanted) == 2 * 13 + 2
    target = (tmp_path / "there").as_uri() if store == "file" else f"memory:/{tmp_path}/there"
    there, root = fsspec.core.url_to_fs(target)
    copied = tmp_path / "copied"

    def again(engine: EngineConfig = RAY, **options: Any) -> tuple[MaskPass, Any]:
        in_process.clear()
        work = pass_to(target, inference, items, engine, soft=True, **options)
        found = work.writer.finish()
        shutil.rmtree(copied, ignore_errors=True)
        copied.mkdir()
        there.get(there.find(root), [str(copied / Path(name).name) for name in there.find(root)])
        assert files(copied) == wanted and found.failed == done.failed and found.missing == done.missing
        return work, found

    work, found = again()
    assert len(in_process) == 14 and in_process[0] == "12", "blocks come as they are done"
    assert work.notes == local.notes and {**found.summary(), "folder": ""} == {**done.summary(), "folder": ""}
    assert found.summary()["folder"] == target
    rows = read_manifest(copied)
    assert set(rows) == {item.id for item in items} - {"05"}
    for id, (_, photo, count, digest) in rows.items():
        data = wanted[f"{id}.png"]
        assert (photo, count, digest) == (
            f"{items[0].image.parent}/{id}.png", str(len(data)), hashlib.sha256(data).hexdigest()
        )  # fmt: skip

    # A process that is killed leaves masks that no manifest knows.
    there.rm_file(f"{root}/manifest.csv")
    there.rm_file(f"{root}/03.png")
    for made in (["05", "03"], ["05"]):
        _, found = again()
        assert sorted(in_process) == sorted(made)
        assert (found.written, found.skipped) == (len(made) - 1, 14 - len(made)) and read_manifest(copied) == rows
    again(overwrite=True)
    assert len(in_process) == 14 and read_manifest(copied) == rows
    _, found = again(EngineConfig(), overwrite=True)
    assert found.written == 13 and not in_process and read_manifest(copied) == rows


def test_a_folder_s_manifest_follows_its_masks(
    inference: Inference, items: list[Item], in_process: list[str], tmp_path: Path
) -> None:
    """By any engine, also where the one that began anew was killed."""
    pass_to(tmp_path, inference, items, RAY).writer.finish()
    before = read_manifest(tmp_path)
    LabelWriter(tmp_path, items[:6], CLASSES, {"model": "drawn"}, by_tags, overwrite=True)
    assert set(read_manifest(tmp_path)) == {item.id for item in items[6:]}
    pass_to(tmp_path, inference, items, EngineConfig()).writer.finish()
    assert read_manifest(tmp_path) == before and len(in_process) == 14


def test_what_no_worker_can_do_is_said(inference: Inference, items: list[Item], tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "out", items, CLASSES, {}, by_tags)
    state, _ = ray_engine.Job(inference, writer, None).make(items, ray_engine.TRIES + 1)
    assert len(state["failed"]) == 14 and all("was lost 3 times" in why for _, why in state["failed"])
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}, {"Alive": True, "Resources": {"CPU": 3.0}}]
    for asked, found in (
        ({}, (2, 1.0)),
        ({"gpus": 0.25, "cpus": 2}, (4, 0.25)),
        ({"gpus": 0}, (11, 0)),
        ({"gpus": 0, "workers": 5}, (5, 0)),
    ):
        assert ray_engine._pool(nodes, EngineConfig(**asked), True, Console(quiet=True)) == found
    with pytest.raises(ConfigError, match="9 CPUs and 1 GPUs .*, which this machine has not"):
        ray_engine._pool(nodes, EngineConfig(cpus=9), True, Console(quiet=True))
    with pytest.raises(DataError, match="nosuch://x: cannot be opened"):
        LabelWriter(Path("nosuch://x"), items, CLASSES, {}, by_tags)
    with pytest.raises(DataError, match="its mask would be written over it"):
        LabelWriter(Path(str(items[0].image.parent)), items, CLASSES, {}, by_tags)


@pytest.mark.slow
def test_a_killed_worker_costs_its_block_and_nothing_else(
    inference: Inference, items: list[Item], tmp_path: Path
) -> None:
    """Two workers share a GPU that Ray is told of; one kills itself, with a block half done."""
    import ray

    pass_to(tmp_path / "local", inference, items, EngineConfig()).writer.finish()
    log, killed = tmp_path / "log", tmp_path / "killed"

    def make(item: Item, look: Look) -> tuple[Any, Any, Sequence[str]]:
        with log.open("a") as file:
            file.write(f"{item.id} {os.getpid()}\n")
        if item.id == "09" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return *look.mask, ()

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    settings: dict[str, Any] = {"include_dashboard": False, "logging_level": "error", "object_store_memory": 2**27}
    ray.init(address="local", num_cpus=2, num_gpus=1, **settings)
    try:
        work = pass_to(tmp_path / "ray", inference, items, EngineConfig(name="ray", gpus=0.5), make)
    finally:
        ray.shutdown()
    done = work.writer.finish()
    assert killed.exists() and files(tmp_path / "ray") == files(tmp_path / "local")
    assert [name for name, _ in done.failed] == [str(items[5].image)] and len(work.notes or {}) == 1
    assert set(read_manifest(tmp_path / "ray")) == {item.id for item in items} - {"05"}
    made = [line.split() for line in log.read_text().splitlines()]
    times = Counter(id for id, _ in made)
    again = {id for id, count in times.items() if count > 1}
    assert "09" in again and again <= {"08", "09", "10", "11"} and max(times.values()) == 2, (
        "only what was not written yet"
    )
    assert len({process for _, process in made}) >= 2
