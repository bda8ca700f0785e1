"""A run on tar shards: the same masks as on a folder of the same photos, resumed, labelled, predicted and checked."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import load_config
from tagmask.data import write_demo
from tagmask.workflow import label, predict, train
from tagmask.workflow.opened import Run


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of scenes, and the same in two shards."""
    home = tmp_path_factory.mktemp("both")
    folder, shards = write_demo(home / "folder", 12, (48, 64)), home / "shards"
    shards.mkdir()
    for name in ("classes.txt", "train.txt", "val.txt", "test.txt"):
        (shards / name).write_bytes((folder / name).read_bytes())
    rows = [row.split(",") for row in (folder / "tags.csv").read_text().splitlines()[1:]]
    for i in range(2):
        with tarfile.open(shards / f"{i}.tar", "w") as tar:
            for name, tags in (row[:2] for row in rows[i::2]):
                key = Path(name).stem
                text = json.dumps({"tags": tags.split(";") if tags else []}).encode()
                image, mask = (next((folder / kind).glob(f"{key}.*")).read_bytes() for kind in ("images", "masks"))
                for member, content in ((f"{key}.png", image), (f"{key}.json", text), (f"{key}.mask.png", mask)):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder, shards


def trained(root: Path, out: Path) -> Run:
    config = load_config(
        {
            "data": {"root": str(root)},
            "encoder": {"name": "test_resnet", "weights": "none"},
            "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 8}},
            "train": {
                "accelerator": "cpu",
                "batch_size": 2,
                "steps": 4,
                "workers": 0,
                "precision": "fp32",
                "warmup": 1,
            },
            "views": {"crop": 32},
            "label": {"cam_scales": [1.0]},
        }
    )
    run = Run(out, config)
    train(run)
    return run


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_masks_are_those_of_the_folder(both: tuple[Path, Path], tmp_path: Path) -> None:
    folder, shards = both
    runs = [trained(folder, tmp_path / "one"), trained(shards, tmp_path / "two")]
    assert runs[0].fingerprint["digest"] == runs[1].fingerprint["digest"]
    losses = [(run.folder.log_file).read_text().splitlines() for run in runs]
    parsed = [[json.loads(line).get("losses") for line in lines] for lines in losses]
    assert parsed[0] == parsed[1] and any(parsed[0])
    for run in runs:
        label(run, "train+val")
    made = [masks(run.folder.masks) for run in runs]
    assert made[0] and same(*made)
    predict(runs[0], [folder / "images"], tmp_path / "of_folder", overrides=["label.source=cam"])
    predict(runs[1], [shards / "0.tar", shards / "1.tar"], tmp_path / "of_shards", overrides=["label.source=cam"])
    assert len(masks(tmp_path / "of_folder")) == 12
    assert same(masks(tmp_path / "of_folder"), masks(tmp_path / "of_shards"))


def test_check_names_a_damaged_member(both: tuple[Path, Path], tmp_path: Path) -> None:
    content = bytearray((both[1] / "0.tar").read_bytes())
    with tarfile.open(both[1] / "0.tar") as tar:
        info = next(info for info in tar if info.name.endswith(".png"))
    content[info.offset_data + 40 : info.offset_data + 200] = b"\0" * 160
    (tmp_path / "0.tar").write_bytes(content[:-20_000])
    done = CliRunner().invoke(
        app, ["check", str(tmp_path / "0.tar"), "--strict", "--save", str(tmp_path / "found.json")]
    )
    said = "".join(done.output.split())  # lines are cut anywhere
    assert done.exit_code == 1
    assert f"0.tar/{info.name}:cannotbereadasanimage" in said, said
    assert "cutoffwiththeshard.Writetheshardagain" in said
