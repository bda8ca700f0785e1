"""Staged runs on drawn scenes and an untrained encoder: what each stage makes, and that it can be killed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tagmask.cli import app
from tagmask.config import RunConfig, load_config
from tagmask.data import open_data, write_demo
from tagmask.errors import ConfigError, WeightsError
from tagmask.label import write_label_files
from tagmask.refine import DenseCRF, label_probabilities
from tagmask.stage_config import CamsStage, MasksStage
from tagmask.training import RunFolder, read_json
from tagmask.workflow import evaluate, prepare, resumed, run, run_stages, staged_run, train, training_items
from tagmask.workflow.stage_labels import ConfidentLabels, WalkedMasks, write_labels
from tagmask.workflow.stages import PNG_EXTRA, check_stages, disk_plan, network_config, walk_settings

STAGES = [
    "classifier",
    {"cams": {"crf": "none", "high": 0.6, "low": 0.3}},
    {"affinity": {"method": {"radius": 3}}},
    {"masks": {"walk": {"walk_steps": 16}}},
    "segmenter",
]
BASE = {
    "encoder": {"name": "resnet18", "weights": "none"},
    "views": {"crop": 64},
    "method": {"name": "baseline", "warmup": 1, "head_options": {"hidden": 16}},
    "train": {
        "steps": 2, "batch_size": 2, "workers": 0, "warmup": 0, "accelerator": "cpu", "checkpoint_every": 1,
        "optimizer": "sgd", "lr": 0.01, "channels_last": False,
    },
    "label": {"cam_scales": [1.0]},
    "evaluate": {"bootstrap": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_demo(folder, images=8, size=(64, 80), seed=3)
    return folder


@pytest.fixture(scope="module")
def config(scenes: Path) -> RunConfig:
    data = {"root": str(scenes), "train": "train.txt", "val": "val.txt", "test": "test.txt", "masks": "masks"}
    own = {"method": {"head": "largefov", "head_options": {"hidden": 16}}}
    return load_config(BASE, {"data": data, "stages": [*STAGES[:4], {"segmenter": own}]})


@pytest.fixture(scope="module")
def classifier(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose first stage is done."""
    out = tmp_path_factory.mktemp("runs") / "first"
    train(config, out)
    return out


@pytest.fixture(scope="module")
def staged(config: RunConfig, classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all stages done, never interrupted."""
    out = tmp_path_factory.mktemp("staged") / "run"
    shutil.copytree(classifier, out)
    run_stages(config, out, prepare(config))
    return out


def made(run: Path) -> dict[str, bytes]:
    """Label files by name, and the networks' weights by their digest."""
    found = {str(p.relative_to(run)): p.read_bytes() for name in ("seeds", "masks") for p in (run / name).glob("*.png")}
    for name in ("affinity", "segmenter"):
        found[name] = read_json(run / name / "model" / "classes.json")["digest"].encode()
    return found


def test_every_stage_leaves_its_outputs(staged: Path, config: RunConfig) -> None:
    collection = prepare(config)[0]
    names = {item.id for item in collection.split("train")}
    for folder in ("seeds", "masks"):
        assert {p.stem for p in (staged / folder).glob("*.png")} == names
    for item in collection.split("train"):
        allowed = {0} | {t + 1 for t in item.tags or ()}
        for folder, extra in (("seeds", {255}), ("masks", set())):
            values = set(np.unique(np.array(Image.open(staged / folder / f"{item.id}.png"))).tolist())
            assert values <= allowed | extra, (folder, item.id)
    assert not list(staged.rglob("*.npz")), "no soft maps unless asked"
    sub = RunFolder(staged / "segmenter").config()
    assert sub.method.name == "supervised" and sub.stages is None
    assert sub.data.train_masks == staged / "masks"
    (score,) = evaluate(staged, "train", ["masks"])
    assert score["protocol"]["grid"] is None, "label files do not say on which grid they were made"
    assert "random walk (irn" in score["protocol"]["refine"] and "walk_steps 16" in score["protocol"]["refine"]
    assert score["protocol"]["threshold"] == 0.25 and score["protocol"]["supervision"] == "tags"
    (of_segmenter,) = evaluate(staged / "segmenter", "test")
    assert of_segmenter["name"] == "segmenter" and of_segmenter["protocol"]["supervision"] == "masks"
    how = of_segmenter["protocol"]["masks"]
    assert how.startswith("baseline on resnet18, CAMs, scales 1") and "random walk (irn, " in how
    assert "walk_steps 16" in how and str(staged) not in json.dumps(of_segmenter["protocol"])


def test_weights_of_later_stages_are_missed_before_the_first_training(
    config: RunConfig, scenes: Path, tmp_path: Path, classifier: Path
) -> None:
    lacking = load_config(
        config.model_dump(mode="json"), {"stages": {"segmenter": {"encoder": {"weights": "nowhere.pth"}}}}
    )
    with pytest.raises(WeightsError, match="nowhere.pth"):
        staged_run(lacking, tmp_path / "tables", ())
    assert not (tmp_path / "tables" / "model").exists() and not (tmp_path / "tables" / "log.jsonl").exists()
    for dry_run in (True, False):
        with pytest.raises(WeightsError, match="nowhere.pth"):
            run([lacking.model_dump(mode="json")], {}, [], tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "log.jsonl").exists()


def kill_at(patch: pytest.MonkeyPatch, what: str, times: int) -> None:
    """Make the ``times``-th call of a function die: of ``write_json`` before it writes, of others afterwards."""
    room, name = what.rsplit(".", 1)
    original, calls = getattr(import_module(room), name), []

    def killing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == times and name == "write_json":
            raise KeyboardInterrupt
        result = original(*args, **options)
        if len(calls) == times:
            raise KeyboardInterrupt
        return result

    patch.setattr(import_module(room), name, killing)


LABEL = "tagmask.label.engine.write_mask"
CHECKPOINT = "tagmask.training.loop.save_checkpoint"
MODEL = "tagmask.training.model_files.write_json"
"""Called once a photo, once a step (two steps a network), and once a model, whose weights are there already then."""
DONE = {"seeds": "cams", "affinity": "affinity", "masks": "masks", "segmenter": "segmenter"}


@pytest.mark.parametrize(
    "where,what,times",
    [
        ("classifier", CHECKPOINT, 1),
        ("classifier", MODEL, 1),
        ("cams", LABEL, 2),
        ("affinity", CHECKPOINT, 1),
        ("affinity", MODEL, 1),
        ("masks", LABEL, 2),
        ("segmenter", CHECKPOINT, 3),
        ("segmenter", MODEL, 2),
    ],
)
def test_a_killed_run_goes_on_and_gives_the_same_masks(
    where: str,
    what: str,
    times: int,
    config: RunConfig,
    classifier: Path,
    staged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    if where != "classifier":
        shutil.copytree(classifier, out)
    count = len(prepare(config)[0].split("train"))
    with monkeypatch.context() as patch:
        kill_at(patch, what, times + count * (where == "masks"))
        with pytest.raises(KeyboardInterrupt):
            staged_run(config, out, ())
    begun = [stage for folder, stage in DONE.items() if (out / folder).is_dir()]
    assert begun == list(DONE.values())[: list(DONE.values()).index(where) + 1 if where in DONE.values() else 0]
    done = staged_run(config, out, ())["stages"]
    if what == LABEL:
        assert done[where]["skipped"] == 2 and done[where]["written"] == count - 2
    assert made(out) == made(staged)
    assert read_json(out / "model" / "classes.json") == read_json(classifier / "model" / "classes.json")


def test_soft_maps_that_were_cut_short_are_made_again(
    config: RunConfig, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_config(config.model_dump(mode="json"), overrides=["stages.cams.soft=true", "stages.affinity=null"])
    asked = load_config(asked.model_dump(mode="json"), overrides=["stages.masks=null", "stages.segmenter=null"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        shutil.copytree(classifier, out)
    staged_run(asked, whole, ())

    def half(path: Path, **arrays: Any) -> None:
        path.write_bytes(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez_compressed", half)
        with pytest.raises(KeyboardInterrupt):
            staged_run(asked, cut, ())
    assert len(list((cut / "seeds").glob("*.npz"))) == 1
    staged_run(asked, cut, ())
    files = [{p.name: p.read_bytes() for p in (out / "seeds").iterdir()} for out in (whole, cut)]
    assert files[0] == files[1] and any(name.endswith(".npz") for name in files[0])


@pytest.mark.slow
def test_a_process_that_is_killed_in_every_stage_gives_the_same_masks(scenes: Path, tmp_path: Path) -> None:
    """SIGKILL, as a machine that goes down: nothing is cleaned up. Once a stage, each while it is half done."""
    words = ["run", str(scenes), "--masks", str(scenes / "masks"), "-e", "resnet18", "--weights", "none", "--json"]
    words += ["views.crop=64", "train.steps=12", "train.checkpoint_every=1", "train.batch_size=2", "train.workers=0"]
    words += ["train.accelerator=cpu", "train.precision=fp32", "label.cam_scales=[1.0]", "evaluate.bootstrap=0"]
    words += ["method.warmup=1", "train.warmup=0", "data.train=train.txt", "data.val=val.txt", "data.test=test.txt"]
    words += ["stages=[classifier, cams, affinity, masks, segmenter]", "stages.cams.high=0.6", "stages.cams.low=0.3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(words: list[str], out: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "tagmask", *words, "-o", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    process = start(words, whole)
    assert process.wait(300) == 0, process.stderr.read()  # type: ignore[union-attr]
    for sign in ("checkpoints/*.ckpt", "seeds/*.png", "affinity/checkpoints/*.ckpt", "masks/*.png",
                 "segmenter/checkpoints/*.ckpt"):  # fmt: skip
        process = start(words if not killed.exists() else ["run", "--resume", "--json"], killed)
        while process.poll() is None and not any(killed.glob(sign)):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (sign, process.stderr.read())  # type: ignore[union-attr]
    process = start(["run", "--resume", "--json"], killed)
    assert process.wait(300) == 0, process.stderr.read()  # type: ignore[union-attr]
    assert made(killed) == made(whole)


def test_staged_run_scores_what_is_wanted(config: RunConfig, staged: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(staged, out)
    for checkpoint in out.rglob("*.ckpt"):
        checkpoint.unlink()  # what is finished needs none
    wanted = [("masks", "train"), ("seeds", "train"), ("cam", "val"), ("cam", "train"), ("segmenter", "test")]
    result = staged_run(config, out, wanted)
    assert made(out) == made(staged) and result["stages"]["masks"]["written"] == 0
    found = [(s["name"], s["protocol"]["split"], s["protocol"]["method"]) for s in result["scores"]]
    assert found == [
        ("cam", "val", "baseline"), ("segmenter", "test", "supervised"), ("masks", "train", "baseline"),
        ("seeds", "train", "baseline"), ("cam", "train", "baseline"), ("cam (val threshold)", "train", "baseline"),
    ]  # fmt: skip
    scores = {s["name"]: s for s in result["scores"] if s["protocol"]["split"] == "train"}
    assert scores["seeds"]["protocol"]["refine"] == "confident labels (high 0.6, low 0.3)"
    assert scores["seeds"]["protocol"]["threshold"] is None and scores["seeds"]["protocol"]["crf"] is None
    assert scores["seeds"]["coverage"] < scores["masks"]["coverage"] == 1
    assert scores["masks"]["protocol"]["refine"].startswith("random walk")
    assert set(result["minutes"]) == {"check", "train", "cams", "affinity", "masks", "segmenter", "evaluate"}


@pytest.mark.parametrize(
    "stages,wanted,message",
    [
        (None, (), "no stages"),
        (["classifier", "cams"], [("masks", "train")], "stage 'masks'"),
        (["classifier", "cams"], [("seeds", "val")], "split 'train' only"),
        (["classifier", "cams"], [("sedes", "train")], "not a score.*seeds"),
    ],
)
def test_staged_run_refuses_before_it_trains(
    stages: Any, wanted: Any, message: str, config: RunConfig, tmp_path: Path
) -> None:
    values = config.model_dump(mode="json") | {"stages": stages}
    with pytest.raises(ConfigError, match=message):
        staged_run(load_config(values), tmp_path / "run", wanted)
    assert not (tmp_path / "run").exists()


def test_stages_may_change_after_a_training_that_saved_them(config: RunConfig, tmp_path: Path) -> None:
    """As after ``tagmask train -c rcm_mam_voc``, whose config.yaml holds the stages of that file."""
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    changed = resumed(folder, [], {}, ["stages.masks.walk.walk_steps=2"])
    assert changed.stages is not None and changed.stages.masks is not None
    assert changed.stages.masks.walk == {"walk_steps": 2}
    assert resumed(folder, [], {}, ["stages=null"]).stages is None
    with pytest.raises(ConfigError, match="train.lr differ"):
        resumed(folder, [], {}, ["train.lr=0.5", "stages=null"])


def test_nothing_is_done_twice(config: RunConfig, staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(staged)
    monkeypatch.setattr("tagmask.workflow.stages.train", None)
    done = run_stages(config, staged, prepare(config))
    assert done["cams"]["written"] == done["masks"]["written"] == 0 and made(staged) == before


def test_no_stage_sees_the_true_masks_of_training_photos(
    config: RunConfig, classifier: Path, staged: Path, tmp_path: Path
) -> None:
    """Their files are swapped for ones that are not there: opening one would fail."""
    out = tmp_path / "run"
    shutil.copytree(classifier, out)
    collection, found = prepare(config)
    trains = set(collection.splits["train"])
    hidden = [replace(i, mask=Path("nowhere.png")) if i.id in trains else i for i in collection.items]
    run_stages(config, out, (replace(collection, items=hidden), found))
    assert made(out) == made(staged)
    items, _ = training_items(network_config(config, "affinity", RunFolder(out)), collection)
    assert items and all(item.mask == out / "seeds" / f"{item.id}.png" for item in items)


def test_other_settings_are_not_mixed(config: RunConfig, staged: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(staged, out)
    with pytest.raises(ConfigError, match="masks.*other settings.*delete"):
        run_stages(
            load_config(config.model_dump(mode="json"), overrides=["stages.masks.crf=psa"]), out, prepare(config)
        )
    other = load_config(config.model_dump(mode="json"), overrides=["stages.cams.high=0.9"])
    with pytest.raises(ConfigError, match="seeds.*delete"):
        run_stages(other, out, prepare(config))
    shutil.rmtree(out / "seeds")
    with pytest.raises(ConfigError, match="affinity.*other labels.*delete"):
        run_stages(other, out, prepare(config))
    slower = load_config(config.model_dump(mode="json"), overrides=["stages.affinity.train.lr=0.5"])
    shutil.rmtree(out / "seeds")
    with pytest.raises(ConfigError, match="train.lr differ"):
        run_stages(slower, out, prepare(config))


def test_masks_without_an_affinity_are_refined_cams(config: RunConfig, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(classifier, out)
    values = config.model_dump(mode="json") | {"stages": {"masks": {"crf": "psa", "soft": True}}}
    done = run_stages(load_config(values), out, prepare(config))
    assert set(done) == {"masks"} and not (out / "seeds").exists()
    path = next((out / "masks").glob("*.npz"))
    with np.load(path) as saved:
        assert saved["scores"].dtype == np.float16 and saved["scores"].shape[1:] == (64, 80)
        names = json.loads(str(saved["classes"]))
        assert names[0] == "background" and len(names) == len(saved["scores"])
    (score,) = evaluate(out, "train", ["masks"])
    assert score["protocol"]["refine"] == "par" and score["protocol"]["crf"].startswith("psa")


# What label files hold, against loops.


def fake_inference(cams: torch.Tensor) -> Any:
    """An Inference whose CAMs are given; images of their size, without a working grid of their own."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        config=SimpleNamespace(max_side=99),
        method=SimpleNamespace(classes=len(cams)),
        cams=lambda photo, tags: cams * tags[:, None, None],
        batch=lambda photo, longest: photo[None].float() / 255,
    )


@pytest.mark.parametrize("rule", ["constant", "power"])
@pytest.mark.parametrize("crf", ["none", "psa"])
@pytest.mark.parametrize("confidence", [0.7, None])
def test_confident_labels_equal_the_rule(rule: str, crf: str, confidence: float | None) -> None:
    generator = torch.Generator().manual_seed(1)
    cams = torch.rand(4, 9, 11, generator=generator)
    photo = torch.randint(0, 256, (3, 9, 11), generator=generator, dtype=torch.uint8)
    stage = CamsStage(rule=rule, high=0.8, low=0.5, power_high=0.5, power_low=2, crf=crf, confidence=confidence)  # type: ignore[arg-type]
    present = torch.tensor([1, 3])
    labels, soft = ConfidentLabels(fake_inference(cams), stage)(photo, present)
    assert torch.equal(soft, cams[[1, 3]])

    def labelling(constant: float, power: float) -> torch.Tensor:
        found = torch.zeros(9, 11, dtype=torch.long)
        scores = torch.zeros(3, 9, 11)
        for y in range(9):
            for x in range(11):
                best = max(float(cams[1, y, x]), float(cams[3, y, x]))
                scores[0, y, x] = constant if rule == "constant" else (1 - best) ** power
                scores[1, y, x], scores[2, y, x] = cams[1, y, x], cams[3, y, x]
                found[y, x] = max(range(3), key=lambda k: float(scores[k, y, x]))
        if crf == "none":
            return found
        probs = scores[None] if confidence is None else label_probabilities(found[None], 3, confidence)
        return DenseCRF.preset(crf)(photo[None], probs)[0].argmax(0)

    strict, lenient = labelling(0.8, 0.5), labelling(0.5, 2)
    for y in range(9):
        for x in range(11):
            a, b = int(strict[y, x]), int(lenient[y, x])
            assert int(labels[y, x]) == (a if a and b else 0 if not a and not b else 255)
    assert len(labels.unique()) > 1


def test_label_files_have_the_photos_size_and_the_data_sets_classes(tmp_path: Path, scenes: Path) -> None:
    collection = open_data(load_config({"data": {"root": str(scenes)}}).data)
    items = [item for item in collection.items if item.tags][:1]
    items += [replace(items[0], id="nothing", tags=()), replace(items[0], id="broken", image=Path("nowhere.jpg"))]

    def make(photo: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.zeros(photo.shape[-2:], dtype=torch.uint8)
        labels[0, 0], labels[1, 1] = len(present), 255
        return labels, torch.zeros(len(present), 2, 2)

    made = write_labels(tmp_path / "out", items, collection.classes, make, {"classes": []}, soft=True)
    values = np.array(Image.open(tmp_path / "out" / f"{items[0].id}.png"))
    assert values.shape == (64, 80) and values[0, 0] == items[0].tags[-1] + 1 and values[1, 1] == 255  # type: ignore
    assert not np.array(Image.open(tmp_path / "out" / "nothing.png")).any(), "nothing in it: background"
    assert made.written == 2 and "nowhere.jpg" in made.failed[0][0]
    with np.load(tmp_path / "out" / f"{items[0].id}.npz") as saved:
        assert json.loads(str(saved["classes"])) == [collection.classes[t] for t in items[0].tags or ()]


def test_overwriting_that_is_killed_leaves_no_old_labels(tmp_path: Path, scenes: Path) -> None:
    items = open_data(load_config({"data": {"root": str(scenes)}}).data).items[:3]

    def write(value: int, die_after: int = 9, **options: Any) -> Any:
        def make(item: Any, photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
            if items.index(item) == die_after:
                raise KeyboardInterrupt
            return torch.full(photo.shape[-2:], value, dtype=torch.uint8), torch.full((1, 2, 2), value), ["x"]

        return write_label_files(tmp_path, items, make, {"value": value}, **options)

    write(1, soft=True)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    with pytest.raises(ConfigError, match="other settings.*--overwrite"):
        write(2)
    with pytest.raises(KeyboardInterrupt):
        write(2, die_after=1, overwrite=True)
    assert write(2).skipped == 1
    assert not list(tmp_path.glob("*.npz")), "soft maps of the first labels, beside the second ones"
    assert {int(np.array(Image.open(path)).max()) for path in tmp_path.glob("*.png")} == {2}
    extra = replace(items[0], id="further")
    with pytest.raises(ConfigError, match="further photos"):
        write_label_files(tmp_path, [extra], None, {"value": 3}, overwrite=True)  # type: ignore[arg-type]


def test_the_crf_of_masks_is_applied() -> None:
    cams = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(2))
    photo = torch.zeros(3, 9, 11, dtype=torch.uint8)
    photo[:, :, 5:] = 200

    class Walker:
        def propagate(self, images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full((1, 9, 11), 0.5), maps])

    inference = fake_inference(cams)
    inference._autocast = lambda: torch.autocast("cpu", enabled=False)
    present = torch.tensor([0, 1])
    plain, scores = WalkedMasks(inference, MasksStage(), Walker())(photo, present)  # type: ignore[arg-type]
    assert torch.equal(plain, torch.cat([torch.full((1, 9, 11), 0.5), cams]).argmax(0).byte())
    smooth, _ = WalkedMasks(inference, MasksStage(crf="psa"), Walker())(photo, present)  # type: ignore[arg-type]
    probs = scores / scores.sum(0)
    assert torch.equal(smooth, DenseCRF.preset("psa")(photo[None], probs[None])[0].argmax(0).byte())
    assert not torch.equal(plain, smooth)


# Configuration and plan.


def test_disk_that_the_plan_names_is_enough_and_not_far_off(config: RunConfig, staged: Path) -> None:
    found = prepare(config)[1]
    rows = {row["stage"]: row for row in disk_plan(config, RunFolder(staged), found)}
    assert list(rows) == ["classifier", "cams", "affinity", "masks", "segmenter"]
    for name, folder in (("cams", "seeds"), ("masks", "masks")):
        written = sum(p.stat().st_size for p in (staged / folder).glob("*.png"))
        assert 0 < written <= rows[name]["bytes"]
    for name in ("affinity", "segmenter"):
        written = sum(p.stat().st_size for p in (staged / name).rglob("*") if p.suffix in (".ckpt", ".safetensors"))
        assert rows[name]["bytes"] == pytest.approx(written, rel=0.02), name


def test_the_plan_goes_by_the_mean_photo_and_the_checkpoint_that_is_being_written(
    config: RunConfig, staged: Path
) -> None:
    found = prepare(config)[1]
    images = found["splits"]["train"]["labelled"]
    # As of photos most of which are small: the median says nothing about the few large ones, which fill the disk.
    found["sizes"] |= {"pixels": 90000}
    found["sizes"]["height"] |= {"max": 900}
    rows = {row["stage"]: row for row in disk_plan(config, RunFolder(staged), found)}
    assert rows["cams"]["bytes"] == rows["masks"]["bytes"] == images * (90000 + 900 + PNG_EXTRA)
    longer = load_config(config.model_dump(mode="json"), overrides=["train.steps=9", "train.keep=2"])
    (few, *_), (many, *_) = (disk_plan(c, RunFolder(staged), found) for c in (config, longer))
    assert "up to 2 checkpoints" in few["makes"] and "up to 3 checkpoints" in many["makes"]
    checkpoint = next((staged / "checkpoints").glob("*.ckpt")).stat().st_size
    assert many["bytes"] - few["bytes"] == pytest.approx(checkpoint, rel=0.02)


def test_soft_maps_are_announced(config: RunConfig, staged: Path) -> None:
    found = prepare(config)[1]
    asked = load_config(config.model_dump(mode="json"), overrides=["stages.cams.soft=true"])
    rows = [disk_plan(c, RunFolder(staged), found)[1] for c in (config, asked)]
    tags = sum(found["tags"].values()) / found["counts"]["labelled"]
    images = found["splits"]["train"]["labelled"]
    assert rows[1]["bytes"] - rows[0]["bytes"] == pytest.approx(2 * 64 * 80 * tags * images, abs=2)
    assert "soft maps" in rows[1]["makes"] and "soft" not in rows[0]["makes"]


def test_a_stage_takes_what_it_does_not_set_from_the_run(config: RunConfig) -> None:
    folder = RunFolder("out")
    values = config.model_dump(mode="json")
    own = {"configs": ["deeplab_v2"], "train": {"steps": 7}, "method": {"head": "aspp", "head_options": {}}}
    made = network_config(load_config(values, {"stages": {"segmenter": own}}), "segmenter", folder)
    assert made.encoder.name == "resnet101" and made.encoder.output_stride == 8 and made.encoder.weights == "auto"
    assert made.train.steps == 7 and made.train.lr == 2.5e-4 and made.views.crop == 321
    assert made.data.train_masks == Path("out/masks") and made.data.seed == config.seed
    values["encoder"]["output_stride"] = 8
    other = load_config(values, overrides=["stages.segmenter.encoder.name=resnet34"])
    encoder = network_config(other, "segmenter", folder).encoder
    assert encoder.output_stride == 16, "another encoder has its own defaults"
    assert encoder.weights == "none", "but an untrained run stays untrained"
    affinity = network_config(config, "affinity", folder)
    assert affinity.method.name == "irn" and affinity.train == config.train and affinity.encoder == config.encoder


@pytest.mark.parametrize(
    "stages,message",
    [
        (["classifier", "afinity"], "afinity.*affinity"),
        (["cams", "classifier"], "in this order: classifier, cams, affinity, masks, segmenter"),
        (["classifier", "affinity"], "add it"),
        (["classifier", "segmenter"], "add it"),
        (["classifier", {"cams": {"hihg": 1}}], "hihg.*high"),
        (["classifier", {"cams": {"high": 0.1, "low": 0.2}}], "stricter"),
        (["classifier", "cams", {"affinity": {"method": {"name": "baseline"}}}], "affinity_net or irn"),
        (["classifier", "masks", {"segmenter": {"method": {"name": "baseline"}}}], "only 'supervised'"),
        (["classifier", {"masks": {"crf": "pas"}}], "psa"),
        (["classifier", {"masks": {"walk": {"beta": 3}}}], "no stage 'affinity'"),
        (["classifier", "cams", "affinity", {"masks": {"walk": {"radius": 3}}}], "walk_radius, beta"),
    ],
)
def test_wrong_stages_name_what_is_wrong(stages: list[Any], message: str, config: RunConfig) -> None:
    values = config.model_dump(mode="json") | {"stages": stages}
    with pytest.raises(ConfigError, match=message):
        check_stages(load_config(values), RunFolder("out"))


def test_methods_without_cams_and_several_processes_are_refused(config: RunConfig) -> None:
    values = config.model_dump(mode="json")
    with pytest.raises(ConfigError, match="no CAMs"):
        check_stages(load_config(values, {"method": {"name": "supervised"}}), RunFolder("out"))
    with pytest.raises(ConfigError, match="train.devices=1"):
        check_stages(load_config(values, overrides=["train.devices=2"]), RunFolder("out"))


def test_settings_of_a_stage_are_overridden_by_name() -> None:
    stages = ["classifier", {"cams": {"high": 0.35}}, {"affinity": {"method": {"name": "affinity_net"}}}, "masks"]
    made = load_config({"stages": stages}, overrides=["stages.masks.walk.beta=4", "stages.affinity.train.steps=9"])
    assert made.stages is not None and made.stages.named() == ["classifier", "cams", "affinity", "masks"]
    assert made.stages.cams is not None and made.stages.cams.high == 0.35
    assert made.stages.affinity is not None and made.stages.affinity.train == {"steps": 9}
    settings = walk_settings(network_config(made, "affinity", RunFolder("out")), made.stages.masks)  # type: ignore
    assert settings == {"walk_radius": 5, "beta": 4, "walk_steps": 256, "background_power": 16}
    assert load_config(made.model_dump(mode="json")) == made
    assert load_config().stages is None


@pytest.mark.slow
def test_run_goes_through_all_stages_and_shows_them_first(scenes: Path, tmp_path: Path) -> None:
    words = ["run", str(scenes), "--masks", str(scenes / "masks"), "-m", "rcm_mam", "-e", "resnet18", "--json"]
    words += ["--weights", "none", "views.crop=64", "train.steps=2", "train.warmup=1", "train.batch_size=2"]
    words += ["train.workers=0", "train.accelerator=cpu", "train.precision=fp32", "label.cam_scales=[1.0]"]
    words += ["evaluate.bootstrap=0", "data.train=train.txt", "data.val=val.txt", "data.test=test.txt"]
    words += ["method.weight_rcm=0", "method.attention=none", "stages=[classifier, cams, affinity, masks, segmenter]"]
    words += ["stages.cams.crf=none", "stages.affinity.method.name=affinity_net", "stages.masks.walk.walk_steps=8"]
    out = tmp_path / "run"
    shown = json.loads(CliRunner().invoke(app, [*words, "-o", str(out), "--dry-run"]).stdout)
    assert [row["stage"] for row in shown["stages"]] == ["classifier", "cams", "affinity", "masks", "segmenter"]
    assert shown["plan"]["stages.segmenter.method.head_options"] == {"dilation": 2} and not out.exists()
    result = json.loads(CliRunner().invoke(app, [*words, "-o", str(out)]).stdout)
    assert set(result["minutes"]) >= {"train", "cams", "affinity", "masks", "segmenter", "evaluate", "report"}
    assert result["model"] == str(out / "segmenter" / "model") and Path(result["report"]).is_file()
    scored = {(s["name"], s["protocol"]["split"], s["protocol"]["method"]) for s in result["scores"]}
    assert {("masks", "train", "rcm_mam"), ("segmenter", "test", "supervised")} <= scored
    assert RunFolder(out / "affinity").config().method.name == "affinity_net"
    again = json.loads(CliRunner().invoke(app, ["run", "--resume", "-o", str(out), "--json"]).stdout)
    assert again["masks"]["written"] == 0 and again["masks"]["skipped"] == result["masks"]["written"]
    scores = {(s["name"], s["protocol"]["split"], s["protocol"]["method"]): s["miou"] for s in result["scores"]}
    for score in again["scores"]:
        assert scores[score["name"], score["protocol"]["split"], score["protocol"]["method"]] == score["miou"]
    for path in (out / "masks").iterdir():
        path.unlink()
    words = ["run", "--resume", "-o", str(out), "--json", "stages.masks.walk.walk_steps=2", "stages.segmenter=null"]
    changed = json.loads(CliRunner().invoke(app, words).stdout)
    assert changed["masks"]["written"] == result["masks"]["written"] and "segmenter" not in changed["stages"]
    assert read_json(out / "masks" / "classes.json")["stage"]["walk"]["walk_steps"] == 2
