"""A segmenter as a file: the same labels as by its run, on photos of any size, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import padding
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import load_config
from tagmask.data import read_image, read_mask, write_demo
from tagmask.errors import ConfigError, DataError
from tagmask.export.network import Network, same_padding
from tagmask.files import read_record
from tagmask.label import Inference, Look
from tagmask.methods import build_method
from tagmask.types import IGNORE
from tagmask.workflow import Run, predict, train
from tests.methods.contract import CLASSES, ENCODERS, tiny
from tests.test_docs import ROOT
from tests.workflow.conftest import BASE

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from tagmask.export.compare import check, compare  # noqa: E402
from tagmask.export.onnx import export_onnx, reduce, write  # noqa: E402
from tagmask.export.program import export_program  # noqa: E402
from tagmask.export.runtime import Exported, predict_exported  # noqa: E402

ABOUT = {
    "classes": ["a", "b", "c"],
    "max_side": 2048,
    "tags": False,
    "source": "segmenter",
    "settings": {},
    "model": "",
}
TINY = {
    "encoder": {"name": "test_resnet"},
    "method": {"name": "supervised", "head": "compact"},
    "train": {"lr": 1e-6},  # labels of a random network are mixed
    "label": {"scales": [1.0], "flip": True, "crf": "afa", "unsure": 0.168},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_demo(folder, images=8, size=(64, 80), seed=3)
    return folder


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "masks"
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "masks": "masks"}
    base = BASE | {"method": {"head_options": {"hidden": 16}}}
    train(load_config(base, {"data": data}, TINY), out)
    return out


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    out = trained / "segmenter.onnx"
    words = ["export", str(trained), "--json"]
    done = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert done["file"] == str(out) and done["differ"].keys() == {"154x192", "256x320", "410x512"}
    assert max(done["differ"].values()) < 1e-3
    said = " ".join(done["notes"])
    assert "label.crf" in said and "each photo 2 times" in said
    return out


def names_places(content: bytes) -> list[str]:
    """Folders of this computer in a file that is made to be given away."""
    return [place for place in (str(ROOT), sys.prefix, str(Path.home())) if place.encode() in content]


def test_files_name_no_folder_of_the_computer(exported: Path) -> None:
    assert not names_places(exported.read_bytes())


def test_photos_of_any_size_get_the_labels_of_the_run(trained: Path, exported: Path) -> None:
    run = plain(trained)
    found = check_sizes(run.inference, Exported(exported), photo_of(run))
    assert IGNORE in found and len(found) > 1, "label.unsure is in the file"


def plain(trained: Path) -> Run:
    run = Run(trained)
    run.config.label.crf = "none"
    return run


def photo_of(run: Run) -> torch.Tensor:
    return read_image(run.collection.items[0].image)


def check_sizes(inference: Inference, network: Exported, pixels: torch.Tensor) -> set[int]:
    """Compare labels and probabilities at four sizes and in a batch; the labels that were found."""
    photo = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    found: set[int] = set()
    for size in [(80, 64), (47, 200), (33, 33), (301, 99)]:
        pixels = np.array(photo.resize(size))
        wanted, scores = Look(inference, torch.from_numpy(pixels).permute(2, 0, 1)).prediction
        labels, confidence = network.run(pixels)
        assert (labels != wanted.numpy()).mean() <= 1e-3, size
        full = torch.nn.functional.interpolate(scores[None], size=labels.shape, mode="bilinear")[0]
        assert np.abs(confidence - full.amax(0).numpy()).max() < 1e-4, size
        found |= set(np.unique(labels).tolist())
    several = np.stack([np.array(photo.resize((50, 40))), np.array(photo.rotate(90).resize((50, 40)))])
    together = network.session.run(None, {"photos": several})[0]
    assert np.array_equal(together[1], network.run(several[1])[0])
    return found


def test_masks_are_predicted_where_there_is_no_torch(
    trained: Path, exported: Path, scenes: Path, tmp_path: Path
) -> None:
    """In another process that cannot import it; the masks are those of the run."""
    code = "import sys; sys.modules['torch'] = None; from tagmask.cli import main; main()"
    photos, out = scenes / "images", tmp_path / "masks"
    words = ["predict", str(exported), str(photos), "-o", str(out), "--overlay", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == 8 and len(list(out.glob("*_overlay.jpg"))) == 8
    predict(plain(trained), [photos], tmp_path / "run")
    for path in sorted((tmp_path / "run").glob("*.png")):
        assert (read_mask(out / path.name, 60) != read_mask(path, 60)).float().mean() < 1e-3
    assert read_record(out / "classes.json")["classes"] == ["background", *Run(trained).collection.classes]
    again = predict_exported(exported, [photos], out)
    assert (again.written, again.skipped) == (0, 8)


def test_a_large_photo_is_segmented_at_the_largest_side(exported: Path) -> None:
    network = Exported(exported)
    network.max_side = 64
    labels, confidence = network.run(np.zeros((50, 200, 3), np.uint8))
    assert labels.shape == confidence.shape == (50, 200)


def test_reduced_precision_is_smaller_and_close(trained: Path, exported: Path, tmp_path: Path) -> None:
    run, size, most = plain(trained), exported.stat().st_size, {"fp16": 0.01, "int8": 0.15}
    for precision, share in (("fp16", 0.7), ("int8", 0.6)):
        path = tmp_path / f"{precision}.onnx"
        shutil.copy(exported, path)
        reduce(path, precision, run)  # type: ignore[arg-type]
        network = Exported(path)
        assert path.stat().st_size < share * size and network.classes == run.collection.classes
        differ = compare(run, lambda photo, network=network: network.run(photo)[0])
        assert 0 < max(differ.values()) < most[precision]


@pytest.mark.slow
def test_reduced_photos_and_several_scales_are_in_the_file(trained: Path, tmp_path: Path) -> None:
    """Minutes: the sizes that torch.export reasons about are long terms here."""
    run = Run(trained)
    run.config.views.short_side = 48
    run.config.label = run.config.label.model_copy(update={"scales": [0.75, 1.0, 1.25], "crf": "none"})
    done = export_onnx(run, tmp_path / "net.onnx")
    assert max(done["differ"].values()) < 1e-3
    check_sizes(run.inference, Exported(tmp_path / "net.onnx"), photo_of(run))


def test_a_square_is_in_the_file(scenes: Path, tmp_path: Path) -> None:
    label = {"scales": [1.0], "flip": False, "crf": "none", "square": 48}
    config = tiny({"name": "supervised", "head": "compact"}, label=label)
    torch.manual_seed(0)
    inference = Inference(build_method(config, CLASSES), config)
    write(Network(inference), tmp_path / "net.onnx", ABOUT)
    check_sizes(inference, Exported(tmp_path / "net.onnx"), read_image(sorted(scenes.rglob("*.png"))[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, encoder",
    [
        ({"name": "tscd"}, "mit"),
        ({"name": "tscd", "affinity": "none"}, "cnn"),
        ({"name": "eca"}, "vit"),
        ({"name": "cosa", "head": "largefov"}, "vit"),
        ({"name": "cosa"}, "cnn"),
        ({"name": "supervised", "head": "aspp"}, "cnn"),  # of RCM + MAM's and CRT's stages
        ({"name": "supervised", "head": "segformer"}, "mit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_segmenters_of_all_methods_are_exported(
    method: dict[str, str], encoder: str, scenes: Path, tmp_path: Path
) -> None:
    label = {"scales": [1.0], "flip": False, "crf": "none"}
    config = tiny(method, ENCODERS[encoder], views={"local": {"size": 32}}, label=label)
    torch.manual_seed(0)
    inference = Inference(build_method(config, CLASSES), config)
    write(Network(inference), tmp_path / "net.onnx", ABOUT)
    check_sizes(inference, Exported(tmp_path / "net.onnx"), read_image(sorted(scenes.rglob("*.png"))[0]))


def test_a_program_of_torch_export_gives_the_labels_of_the_run(trained: Path, tmp_path: Path, scenes: Path) -> None:
    out = tmp_path / "segmenter.pt2"
    words = [
        "export",
        str(trained),
        "--to",
        "torch",
        "-o",
        str(out),
        "label.scales=[1.0]",
        "label.flip=false",
        "--json",
    ]
    found = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert found["file"] == str(out) and max(found["differ"].values()) <= 1e-3
    with zipfile.ZipFile(out) as archive:
        assert not [name for name in archive.namelist() if names_places(archive.read(name))]
    labels, confidence = torch.export.load(out).module()(torch.zeros(3, 45, 70, 3, dtype=torch.uint8))
    assert labels.shape == confidence.shape == (3, 45, 70)


def test_labels_that_differ_are_refused(trained: Path, tmp_path: Path) -> None:
    differ = compare(Run(trained), lambda photo: np.zeros(photo.shape[:2], np.uint8))
    with pytest.raises(DataError, match=r"net\.onnx: not written"):
        check(differ, tmp_path / "net.onnx")


def test_a_model_without_its_photos_is_refused(trained: Path, tmp_path: Path) -> None:
    for export in (export_onnx, export_program):
        with pytest.raises(DataError, match="Give the run's folder"):
            export(trained / "model", tmp_path / "file")


def test_what_cannot_be_run_says_why(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"no network")
    with pytest.raises(DataError, match=r"other\.onnx: not a segmenter"):
        Exported(tmp_path / "other.onnx")
    with pytest.raises(DataError, match=r"gone\.onnx: no such file"):
        Exported(tmp_path / "gone.onnx")
    refused = CliRunner().invoke(app, ["predict", str(exported), str(tmp_path), "-s", "label.unsure=0.5"])
    assert isinstance(refused.exception, ConfigError)


def test_a_swin_is_refused() -> None:
    config = tiny({"name": "supervised", "head": "compact"}, ENCODERS["swin"], label={"crf": "none"})
    with pytest.raises(ConfigError, match="Swin"):
        Network(Inference(build_method(config, CLASSES), config))


def test_padding_by_sums_is_timms() -> None:
    for kernel, stride, dilation in [(3, 2, 1), (5, 2, 1), (3, 1, 2), (3, 3, 1), (1, 1, 1), (1, 2, 1), (2, 4, 1)]:
        for size in range(1, 40):
            wanted = padding.get_same_padding(size, kernel, stride, dilation)
            assert same_padding(size, kernel, stride, dilation) == wanted, (size, kernel, stride, dilation)
