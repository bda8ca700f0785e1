"""The table runner: caching, resuming, refusing, rendering."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tagmask.errors import ConfigError
from tagmask.reproduce import job, packaged_tables, read_table, reproduce
from tagmask.reproduce.configure import configure
from tagmask.reproduce.cost import steps_left
from tagmask.reproduce.render import render
from tagmask.reproduce.runner import make_jobs
from tagmask.training import RunFolder
from tests.reproduce.tiny_table import SMALL, TABLE, staged_table
from tests.workflow.test_localize import write_birds


def test_runs_resumes_and_renders(
    table: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forbid_training: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    plan = reproduce(table, scenes, out, plan=True)
    assert [line["steps"] for line in plan["plan"]] == [2, 2, 2]
    assert not out.exists()
    summary = reproduce(table, scenes, out)
    assert json.loads((out / "tiny" / "table.json").read_text())["markdown"] == summary["markdown"]
    first, second = summary["rows"]
    assert first["seeds"] == [0, 1] and second["seeds"] == [1]
    assert set(first["cells"]["CAM"]["seeds"]) == {0, 1} and second["cells"]["CAM"] is None
    cell = first["cells"]["test"]
    assert cell["mean"] == pytest.approx(sum(cell["seeds"].values()) / 2) and cell["printed"] == 61.5
    stamps = {title: cell["stamp"] for title, cell in first["cells"].items()}
    assert not stamps["test"]["tags"] and stamps["CAM"]["tags"]
    assert stamps["val threshold"]["threshold_from"] == "val" and stamps["CAM"]["threshold_from"] == "fixed"
    assert "(printed 61.5)" in summary["markdown"] and "no tags" in summary["markdown"]
    assert (out / "tiny" / "second" / "seed1" / "model" / "weights.safetensors").is_file()
    forbid_training()
    assert reproduce(table, scenes, out)["markdown"] == summary["markdown"]
    assert reproduce(table, scenes, out, rows=["second"])["markdown"] == summary["markdown"], "other rows stay"
    with pytest.raises(ConfigError, match=r"first.seed0.*train\.lr"):
        reproduce(table, scenes, out, ["train.lr=0.5"])
    # The folder of the masks by another name; then another row's masks.
    monkeypatch.chdir(tmp_path)
    assert reproduce(table, scenes, Path("out"))["markdown"] == summary["markdown"]
    config = out / "tiny" / "second" / "seed1" / "config.yaml"
    text, masks = config.read_text(), str((out / "tiny" / "first" / "seed1" / "masks").resolve())
    assert masks in text
    (tmp_path / "link").symlink_to(out)
    assert reproduce(table, scenes, tmp_path / "link")["markdown"] == summary["markdown"]
    config.write_text(text.replace(masks, masks.replace("first", "third")))
    with pytest.raises(ConfigError, match=r"second.seed1.*data\.train_masks"):
        reproduce(table, scenes, out)


def test_what_a_killed_call_has_done_is_counted(
    table: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "evaluate", killed)
        reproduce(table, scenes, out, rows=["first"], seeds=1)
    run = out / "tiny" / "first" / "seed0"
    (line,) = reproduce(table, scenes, out, rows=["first"], seeds=1, plan=True)["plan"]
    assert line["steps"] == 0 and line["hours"] == 0 and line["scoring_hours"] > 0, "trained, but not scored"
    records = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    records = [record | {"seconds": 600.0} if "seconds" in record else record for record in records]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # A machine may be too quick for minutes of two places: each look at this clock takes six seconds.
    monkeypatch.setattr(job, "time", SimpleNamespace(perf_counter=count(step=6).__next__))
    (row, _) = reproduce(table, scenes, out, rows=["first"], seeds=1)["rows"]
    assert 10 < row["minutes"][0] < 15, "ten of the call before"
    assert json.loads((run / "result.json").read_text())["train_minutes"] == 10


def test_steps_behind_the_newest_checkpoint_are_not_left(table: str, tmp_path: Path) -> None:
    parsed = read_table(table)
    config = configure(parsed, parsed.rows[0], 0, tmp_path, tmp_path, ["train.steps=1000"])
    run = RunFolder(tmp_path / "run")
    assert steps_left(run, config) == 1000
    run.checkpoints.mkdir(parents=True)
    for step in (300, 600):
        (run.checkpoints / f"step_{step:07d}.ckpt").touch()
    assert steps_left(run, config) == 400


def test_a_row_takes_the_masks_of_the_row_before_it(table: str, tmp_path: Path) -> None:
    parsed = read_table(table)
    config = configure(parsed, parsed.rows[1], 1, None, tmp_path, [])
    assert config.data.train_masks == tmp_path / "first" / "seed1" / "masks" and config.seed == 1


def test_half_finished_tables_are_rendered(table: str) -> None:
    text = render(read_table(table), {})["markdown"]
    assert "not run" in text and "(printed 61.5)" in text


@pytest.mark.parametrize(
    "change,message",
    [
        (("name: second", "name: first"), "'first'"),
        (("masks_from: first", "masks_from: third"), "row 'second'.*'third'"),
        (("columns:", "colums:"), "colums"),
        (("score: segmenter", "score: segmentr"), "column 'test'.*'segmentr'.*'segmenter'"),
        (("label: true, ", ""), "row 'first'.*'second'.*label: true"),
        (("seeds: [1]", "seeds: [1, 2]"), r"row 'second'.*'first'.*\[2\]"),
        (("{title: val, split: val", "{title: val, split: vall"), "column 'val'.*'vall'.*'val'"),
        (("threshold, split: train", "threshold, split: val"), "column 'val threshold'.* val"),
        (("title: tiny", "title: [tiny"), "title"),
    ],
)
def test_broken_tables_are_refused_by_name(table: str, change: tuple[str, str], message: str) -> None:
    path = Path(table)
    path.write_text(TABLE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_table(table)
    assert "tiny.yaml" in str(caught.value)


def test_classes_that_a_table_chooses(table: str, tmp_path: Path) -> None:
    text = TABLE.replace("seeds: [0, 1]", "  - evaluate.only=[boat]\nseeds: [0]").replace("seeds: [1]", "seeds: [0]")
    text = text.replace("rows:", "  - {title: C, split: test, score: segmenter, key: c_miou}\nrows:")
    Path(table).write_text(text, encoding="utf-8")
    parsed = read_table(table)
    assert configure(parsed, parsed.rows[0], 0, None, tmp_path, []).evaluate.only == ["boat"]
    assert parsed.columns[-1].key == "c_miou"


VARIED = """
title: varied
set: [SETTINGS, "label.cam_scales=[1.0, 0.5]", "evaluate.only=[boat]"]
columns:
  - {title: best, split: train, score: cam, key: peak}
  - {title: precision at best, split: train, score: cam, key: peak_precision}
  - {title: half, split: train, score: cam, key: peak, set: ["label.cam_scales=[0.5]"]}
  - {title: searched, split: train, score: cam (val threshold), set: ["label.cam_scales=[0.5]"]}
  - {title: spread, split: train, score: spread, key: std}
  - {title: recall, split: test, score: segmenter, key: recall}
rows:
  - {name: first, set: [method.warmup=1]}
  - {name: again, run_of: first, set: ["label.scales=[0.5]", "label.cam_scales=[2.0, 1.0]"]}
"""


def write_varied(folder: Path) -> str:
    """The varied table with the tiny one's settings, in varied.yaml."""
    settings = ", ".join(f'"{s}"' for s in yaml.safe_load(TABLE)["set"] if not s.startswith("label.cam"))
    path = folder / "varied.yaml"
    path.write_text(VARIED.replace("SETTINGS", settings + ', "method.head_options={hidden: 8}"'), encoding="utf-8")
    return str(path)


@pytest.fixture
def varied(tmp_path: Path) -> str:
    return write_varied(tmp_path)


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of row 'first' of the varied table, for tests to copy."""
    home = tmp_path_factory.mktemp("varied")
    half = reproduce(write_varied(home), scenes, home / "out", rows=["first"])["rows"][1]
    assert half["seeds"] == [] and set(half["cells"].values()) == {None}
    return home / "out"


def test_a_training_is_scored_in_several_ways(
    varied: str, scenes: Path, trained: Path, tmp_path: Path, forbid_training: Callable[[], None]
) -> None:
    plan = reproduce(varied, scenes, tmp_path / "new", plan=True)["plan"]
    assert [line["steps"] for line in plan] == [2, 0] and plan[0]["bytes"] > 1e6 and plan[1]["bytes"] == 0
    assert all(line["scoring_hours"] > 0 for line in plan)
    out = shutil.copytree(trained, tmp_path / "out")
    forbid_training()
    first, again = (row["cells"] for row in reproduce(varied, scenes, out)["rows"])
    assert not (out / "varied" / "again" / "seed0" / "model").exists()
    stamps = {title: (first[title]["stamp"], again[title]["stamp"]) for title in first}
    scales = "label.cam_scales"
    assert [stamp["settings"][scales] for stamp in stamps["best"]] == [[1.0, 0.5], [2.0, 1.0]]
    assert [stamp["settings"][scales] for stamp in stamps["half"]] == [[0.5], [0.5]], "the column's come last"
    assert again["half"]["mean"] == pytest.approx(first["half"]["mean"]) and first["half"] != first["best"]
    assert stamps["searched"][0]["threshold_from"] == "val" and stamps["best"][0]["threshold_from"] == "this split"
    # By hand: the curve's own peak, and the deviation of the two scales.
    result = json.loads((out / "varied" / "first" / "seed0" / "result.json").read_text())
    scores = {(s["name"], s["stamp"]["split"], *s["set"]): s for s in result["scores"]}
    assert first["best"]["mean"] == pytest.approx(100 * max(scores["cam", "train"]["curve"]["miou"]))
    spread = [s["miou"] for s in scores["spread", "train"]["scales"]]
    assert first["spread"]["mean"] == pytest.approx(100 * abs(spread[0] - spread[1]) / 2)
    assert 100 * spread[1] == pytest.approx(first["half"]["mean"]), "one scale of the spread is that column"
    recalls = [c["recall"] for c in scores["segmenter", "test"]["per_class"].values() if c["recall"] is not None]
    assert first["recall"]["mean"] == pytest.approx(100 * sum(recalls) / len(recalls))
    assert again["recall"]["stamp"]["settings"]["label.scales"] == [0.5] and again["recall"]["mark"] == "a"
    assert "recall (a): settings.label.scales: [0.5] / [1.0]" in (out / "varied" / "table.md").read_text()
    Path(varied).write_text(Path(varied).read_text().replace('"label.scales=[0.5]"', '"label.scales=[0.7]"'))
    with pytest.raises(ConfigError, match=r"again.seed0.*label\.scales=\[0\.5\]"):
        reproduce(varied, scenes, out)


def test_a_new_column_is_scored_without_training_again(
    varied: str, scenes: Path, trained: Path, tmp_path: Path, forbid_training: Callable[[], None]
) -> None:
    out = shutil.copytree(trained, tmp_path / "out")
    path = out / "varied" / "first" / "seed0" / "result.json"
    before = json.loads(path.read_text())
    text = Path(varied).read_text().replace("rows:", "  - {title: new, split: val, score: refined}\nrows:")
    Path(varied).write_text(text, encoding="utf-8")
    forbid_training()
    row = reproduce(varied, scenes, out, rows=["first"])["rows"][0]
    after = json.loads(path.read_text())
    assert row["cells"]["new"]["mean"] >= 0 and after["minutes"] >= before["minutes"]
    assert after["scores"][: len(before["scores"])] == before["scores"] and len(after["scores"]) > len(before["scores"])


def test_a_column_that_gets_no_score_is_an_error(
    varied: str, scenes: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(trained, tmp_path / "out")
    path = out / "varied" / "first" / "seed0" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": []}), encoding="utf-8")
    monkeypatch.setattr(job, "evaluate", lambda *args, **kwargs: [])
    with pytest.raises(ConfigError, match="first.seed0.*'spread'"):
        reproduce(varied, scenes, out, rows=["first"])


@pytest.mark.parametrize(
    "change,message",
    [
        (('run_of: first, set: ["', 'run_of: none, set: ["'), "row 'again'.*'none'"),
        (('run_of: first, set: ["', 'run_of: first, set: ["method.warmup=1", "'), r"sets method\.warmup=1"),
        (('run_of: first, set: ["', 'run_of: first, set: ["method.inference=online", "'), r"sets method\.inference"),
        (("key: peak,", "key: top1,"), "column 'half'.*'top1'"),
        (("score: spread, key: std", "score: spread, key: miou"), "column 'spread'.*'miou'"),
        (("score: segmenter, key: recall", "score: segmenter, key: peak"), "column 'recall'.*'peak'"),
        (('key: peak, set: ["label.', 'key: peak, set: ["train.'), r"column 'half' sets train\.cam_scales"),
        (("title: half", "title: best"), "'best'"),
        (("{name: first, ", "{name: first, printed: {bst: 5}, "), "row 'first'.*'bst'.*'best'"),
        (("run_of: first,", "run_of: first, label: true,"), "row 'again'.*'set'"),
        (("run_of: first,", "run_of: first, seeds: [4],"), r"row 'again'.*\[4\]"),
    ],
)
def test_broken_variations_are_refused_by_name(varied: str, change: tuple[str, str], message: str) -> None:
    text = Path(varied).read_text()
    assert change[0] in text
    Path(varied).write_text(text.replace(*change, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_table(varied)


def test_stages_of_a_row(table: str, scenes: Path, tmp_path: Path) -> None:
    stages = "{classifier: {}, masks: {}, segmenter: {train: {steps: 3}}}"
    text = staged_table(stages, f"  - {{name: plain, {SMALL}}}\n")
    text = text.replace("rows:", "  - {title: masks, split: train, score: masks}\nrows:")
    path, out = Path(table), tmp_path / "out"
    path.write_text(text, encoding="utf-8")
    plan = reproduce(table, scenes, out, plan=True)["plan"]
    assert [line["steps"] for line in plan] == [5, 2] and plan[0]["bytes"] > plan[1]["bytes"]
    staged, plain = reproduce(table, scenes, out)["rows"]
    assert staged["cells"]["masks"]["mean"] > 0 and plain["cells"]["masks"] is None
    made = [row["cells"]["test"]["stamp"]["run"] for row in (staged, plain)]
    assert [run["method"] for run in made] == ["supervised", "baseline"], "the stage's segmenter"
    assert "supervision: tags / masks" in (out / "tiny" / "table.md").read_text()
    home = out / "tiny" / "staged" / "seed0"
    assert (home / "segmenter" / "model").is_dir() and not list(home.rglob("checkpoints"))
    assert json.loads((home / "result.json").read_text())["stage_minutes"].keys() == {"train", "masks", "segmenter"}
    path.write_text(text.replace("{steps: 3}", "{steps: 4}"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"staged.seed0.*stages\.segmenter"):
        reproduce(table, scenes, out)


def test_a_table_of_localisation(tmp_path: Path) -> None:
    """Columns of boxes on a set in CUB's layout, which has no masks."""
    data = write_birds(tmp_path / "birds")
    settings = [s for s in yaml.safe_load(TABLE)["set"] if not s.startswith("data.")]
    content = {
        "title": "boxes",
        "set": [*settings, "data.val_share=0", "method.warmup=1", "method.head_options={hidden: 8}"],
        "columns": [
            {"title": key, "split": "test", "score": "localization", "key": key} for key in ("top1", "gt_known")
        ],
        "rows": [{"name": "birds", "printed": {"gt_known": 90.1}}],
    }
    path = tmp_path / "boxes.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    (line,) = reproduce(str(path), data, tmp_path / "out", plan=True)["plan"]
    assert line["scoring_hours"] > 0
    (row,) = reproduce(str(path), data, tmp_path / "out")["rows"]
    (found,) = json.loads((tmp_path / "out" / "boxes" / "birds" / "seed0" / "result.json").read_text())["scores"]
    assert found["name"] == "localization" and found["images"] == 4
    assert row["cells"]["top1"]["mean"] == 100 * found["top1"]
    assert row["cells"]["gt_known"]["difference"] == pytest.approx(100 * found["gt_known"] - 90.1)


def test_several_devices_are_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.devices"):
        reproduce(table, tmp_path / "scenes", tmp_path / "out", ["train.devices=2"])
    with pytest.raises(ConfigError, match="'smal'"):
        reproduce(table, tmp_path / "scenes", tmp_path / "out", budget="smal")


def test_rows_that_are_not_built_are_shown_and_never_run(table: str, tmp_path: Path) -> None:
    text = TABLE + "not_built:\n  - {name: third, why: nobody knows how, printed: {test: 70.25}}\n"
    Path(table).write_text(text, encoding="utf-8")
    parsed = read_table(table)
    assert {job.row.name for job in make_jobs(parsed, table, tmp_path, tmp_path, (), None, None)} == {"first", "second"}
    with pytest.raises(ConfigError, match="'third'.*nobody knows how"):
        make_jobs(parsed, table, tmp_path, tmp_path, (), ["third"], None)
    lines = render(parsed, {})["markdown"].splitlines()
    assert "| third | – | – | – | (printed 70.25) | not built |  |" in lines
    assert "- third is not built: nobody knows how" in lines
    for old, new, message in (
        ("name: third", "name: first", "'first'"),
        ("why: nobody knows how, ", "", "why"),
        ("{test: 70.25}", "{tset: 70.25}", "'third'.*'tset'"),
        ("{test: 70.25}", "{}", "printed"),
    ):
        Path(table).write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=message):
            read_table(table)


def test_unknown_row_names_the_nearest(table: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'first'"):
        reproduce(table, tmp_path, tmp_path, rows=["fist"])


@pytest.mark.parametrize("name", packaged_tables())
def test_packaged_tables_give_valid_configurations(name: str, tmp_path: Path) -> None:
    table = read_table(name)
    for row in table.rows:
        assert configure(table, row, 0, tmp_path, tmp_path, []).seed == 0
