"""The table runner: caching, resuming, refusing, rendering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tagmask import workflow
from tagmask.errors import ConfigError
from tagmask.reproduce import packaged_tables, read_table, reproduce
from tagmask.reproduce.configure import configure
from tagmask.reproduce.cost import steps_left
from tagmask.reproduce.render import render
from tagmask.reproduce.runner import make_jobs
from tagmask.training import RunFolder
from tests.reproduce.tiny_table import TABLE
from tests.workflow.test_localize import write_birds


def test_runs_resumes_and_renders(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "scenes", tmp_path / "out"
    plan = reproduce(table, data, out, plan=True)
    assert [line["steps"] for line in plan["plan"]] == [2, 2, 2]
    assert not out.exists()
    summary = reproduce(table, data, out)
    assert json.loads((out / "tiny" / "table.json").read_text())["markdown"] == summary["markdown"]
    first, second = summary["rows"]
    assert first["seeds"] == [0, 1] and second["seeds"] == [1]
    assert set(first["cells"]["CAM"]["seeds"]) == {0, 1} and second["cells"]["CAM"] is None
    cell = first["cells"]["test"]
    assert cell["mean"] == pytest.approx(sum(cell["seeds"].values()) / 2) and cell["printed"] == 61.5
    assert cell["protocol"]["tags_at_test"] is False and first["cells"]["CAM"]["protocol"]["tags_at_test"] is True
    assert first["cells"]["val threshold"]["protocol"]["threshold_source"] == "best on val"
    assert "(printed 61.5)" in summary["markdown"] and "no tags" in summary["markdown"]
    assert (out / "tiny" / "second" / "seed1" / "model" / "weights.safetensors").is_file()

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("what is done must not be done again")

    monkeypatch.setattr(workflow, "train", never)
    assert reproduce(table, data, out)["markdown"] == summary["markdown"]
    assert reproduce(table, data, out, rows=["second"])["markdown"] == summary["markdown"], "other rows stay"
    with pytest.raises(ConfigError, match="other settings: train.lr differ"):
        reproduce(table, data, out, ["train.lr=0.5"])
    # The folder of the masks by another name, as now and as earlier versions wrote it; then another row's masks.
    monkeypatch.chdir(tmp_path)
    assert reproduce(table, data, Path("out"))["markdown"] == summary["markdown"]
    config = out / "tiny" / "second" / "seed1" / "config.yaml"
    text, masks = config.read_text(), str((out / "tiny" / "first" / "seed1" / "masks").resolve())
    assert masks in text
    config.write_text(text.replace(masks, "out/tiny/first/seed1/masks"))
    assert reproduce(table, data, out)["markdown"] == summary["markdown"]
    config.write_text(text.replace(masks, masks.replace("first", "third")))
    with pytest.raises(ConfigError, match="data.train_masks differ"):
        reproduce(table, data, out)


def test_what_a_killed_call_has_done_is_counted(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "scenes", tmp_path / "out"

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workflow, "evaluate", killed)
        reproduce(table, data, out, rows=["first"], seeds=1)
    run = out / "tiny" / "first" / "seed0"
    (line,) = reproduce(table, data, out, rows=["first"], seeds=1, plan=True)["plan"]
    assert line["steps"] == 0 and line["hours"] == 0 and line["scoring_hours"] > 0, "trained, but not scored"
    records = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    records = [record | {"seconds": 600.0} if "seconds" in record else record for record in records]
    (run / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (row, _) = reproduce(table, data, out, rows=["first"], seeds=1)["rows"]
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
        (("name: second", "name: first"), "two rows"),
        (("masks_from: first", "masks_from: third"), "no row before it"),
        (("columns:", "colums:"), "not a valid table"),
        (("score: segmenter", "score: segmentr"), "unknown score 'segmentr'.*'segmenter'"),
        (("label: true, ", ""), "writes no masks"),
        (("seeds: [1]", "seeds: [1, 2]"), r"'first' is not trained with \[2\]"),
        (("{title: val, split: val", "{title: val, split: vall"), "unknown split 'vall'.*'val'"),
        (("threshold, split: train", "threshold, split: val"), "'val threshold': the threshold.*searched on val"),
        (("title: tiny", "title: [tiny"), "not a valid table"),
    ],
)
def test_broken_tables_are_refused_by_name(table: str, change: tuple[str, str], message: str) -> None:
    path = Path(table)
    path.write_text(TABLE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_table(table)
    assert "tiny.yaml" in str(caught.value)


def test_a_column_of_chosen_classes(table: str, tmp_path: Path) -> None:
    path = Path(table)
    text = TABLE.replace("seeds: [0, 1]", "  - evaluate.only=[boat]\nseeds: [0]").replace("seeds: [1]", "seeds: [0]")
    text = text.replace("rows:", "  - {title: C, split: test, score: segmenter, key: c_miou}\nrows:")
    path.write_text(text, encoding="utf-8")
    parsed = read_table(table)
    assert configure(parsed, parsed.rows[0], 0, None, tmp_path, []).evaluate.only == ["boat"]
    protocol = {"threshold": None, "split": "test", "split_hash": "ab", "images": 1, "truth": "x",
                "tags_at_test": False, "seed": 0, "weights": "none", "method": "m", "encoder": "e"}  # fmt: skip
    score = {"name": "segmenter", "protocol": protocol, "miou": 0.5, "interval": None, "curve": None}
    new = {"c_miou": 0.25, "interval_c_miou": {"low": 0.1, "high": 0.4}}
    cells = []
    for found in (score | new, score):  # the second is of a version that did not know the key
        cells.append(render(parsed, {("first", 0): {"scores": [found], "minutes": 1.0}})["rows"][0]["cells"])
    assert cells[0]["C"]["mean"] == 25 and cells[0]["C"]["interval"] == [10, 40]
    assert cells[1]["C"] is None and cells[1]["test"]["mean"] == 50


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


@pytest.fixture
def varied(tmp_path: Path, table: str) -> str:
    settings = ", ".join(f'"{s}"' for s in read_table(table).set if not s.startswith("label.cam"))
    path = tmp_path / "varied.yaml"
    path.write_text(VARIED.replace("SETTINGS", settings + ', "method.head_options={hidden: 8}"'), encoding="utf-8")
    return str(path)


def test_a_training_is_scored_in_several_ways(varied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "scenes", tmp_path / "out"
    plan = reproduce(varied, data, out, plan=True)["plan"]
    assert [line["steps"] for line in plan] == [2, 0] and plan[0]["bytes"] > 10e6 > plan[1]["bytes"] == 0
    assert all(line["scoring_hours"] > 0 for line in plan)
    half = reproduce(varied, data, out, rows=["first"])["rows"][1]
    assert half["seeds"] == [] and set(half["cells"].values()) == {None}
    trainings = []
    monkeypatch.setattr(workflow, "train", lambda *args, **kwargs: trainings.append(args))
    first, again = (row["cells"] for row in reproduce(varied, data, out)["rows"])
    assert not trainings and not (out / "varied" / "again" / "seed0" / "model").exists()
    assert again["best"]["protocol"]["scales"] == [2.0, 1.0] and first["best"]["protocol"]["scales"] == [1.0, 0.5]
    assert again["half"]["protocol"]["scales"] == [0.5], "the column's settings come last"
    assert again["half"]["mean"] == pytest.approx(first["half"]["mean"]) and first["half"] != first["best"]
    assert first["searched"]["protocol"]["threshold_source"] == "best on val"
    assert first["best"]["protocol"]["threshold_source"] == "best on this split (oracle)"
    # By hand: the curve's own peak, and the deviation of the two scales.
    result = json.loads((out / "varied" / "first" / "seed0" / "result.json").read_text())
    scores = {(s["name"], s["protocol"]["split"], *s["set"]): s for s in result["scores"]}
    assert first["best"]["mean"] == pytest.approx(100 * max(scores["cam", "train"]["curve"]["miou"]))
    spread = [s["miou"] for s in scores["spread", "train"]["scales"]]
    assert first["spread"]["mean"] == pytest.approx(100 * abs(spread[0] - spread[1]) / 2)
    assert 100 * spread[1] == pytest.approx(first["half"]["mean"]), "one scale of the spread is that column"
    recalls = [c["recall"] for c in scores["segmenter", "test"]["per_class"].values() if c["recall"] is not None]
    assert first["recall"]["mean"] == pytest.approx(100 * sum(recalls) / len(recalls))
    assert again["recall"]["protocol"]["scales"] == [0.5] and again["recall"]["mark"] == "a"
    text = (out / "varied" / "table.md").read_text()
    assert "- Not made as the column's first row (here / there): recall (a): scales: [0.5] / [1.0]" in text
    Path(varied).write_text(Path(varied).read_text().replace('"label.scales=[0.5]"', '"label.scales=[0.7]"'))
    with pytest.raises(ConfigError, match="again/seed0: was scored with"):
        reproduce(varied, data, out)


def test_a_new_column_is_scored_without_training_again(
    varied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "scenes", tmp_path / "out"
    reproduce(varied, data, out, rows=["first"])
    path = out / "varied" / "first" / "seed0" / "result.json"
    before = json.loads(path.read_text())
    text = Path(varied).read_text().replace("rows:", "  - {title: new, split: val, score: refined}\nrows:")
    Path(varied).write_text(text, encoding="utf-8")
    monkeypatch.setattr(workflow, "train", None)
    row = reproduce(varied, data, out, rows=["first"])["rows"][0]
    after = json.loads(path.read_text())
    assert row["cells"]["new"]["mean"] >= 0 and after["minutes"] >= before["minutes"]
    assert after["scores"][: len(before["scores"])] == before["scores"] and len(after["scores"]) > len(before["scores"])


def test_a_column_that_gets_no_score_is_an_error(varied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow, "evaluate", lambda *args, **kwargs: [])
    with pytest.raises(ConfigError, match="no score for.*'spread'"):
        reproduce(varied, tmp_path / "scenes", tmp_path / "out", rows=["first"])


def test_results_of_earlier_versions_are_read(table: str, tmp_path: Path) -> None:
    """As they were written before settings of columns, and keys, were added: nothing is scored or trained again."""
    parsed = read_table(table)
    data, home = tmp_path / "scenes", tmp_path / "out" / "tiny"
    old = {
        "interval": {"low": 0.4, "high": 0.6, "std": 0.1, "resamples": 20},
        "curve": {"thresholds": [0, 0.5], "miou": [0.3, 0.5], "peak": {"threshold": 0.5, "miou": 0.5}},
        "miou": 0.5,
    }
    protocol = {"threshold": None, "split_hash": "ab", "images": 3, "truth": "demo:masks", "tags_at_test": True,
                "seed": 0, "weights": "none", "method": "baseline", "encoder": "resnet18",
                "version": "0.1.0"}  # fmt: skip
    scores = [old | {"name": column.score, "protocol": protocol | {"split": column.split}} for column in parsed.columns]
    for seed in (0, 1):
        folder = home / "first" / f"seed{seed}"
        folder.mkdir(parents=True)
        result = {"scores": scores, "minutes": 1.0, "train_minutes": 0.5, "seconds_per_step": 0.1, "environment": {}}
        (folder / "result.json").write_text(json.dumps(result))
    summary = reproduce(table, data, tmp_path / "out", rows=["first"])
    assert summary["rows"][0]["cells"]["CAM"]["mean"] == 50 and not (home / "first" / "seed0" / "model").exists()


def test_cells_that_were_made_otherwise_say_so(table: str) -> None:
    parsed = read_table(table)
    protocol = {"threshold": 0.3, "threshold_source": "fixed", "split": "test", "split_hash": "ab", "images": 1,
                "truth": "x", "tags_at_test": False, "seed": 0, "weights": "none", "method": "m",
                "encoder": "e"}  # fmt: skip

    def result(**changed: object) -> dict:
        score = {"name": "segmenter", "protocol": protocol | changed, "miou": 0.5, "interval": None, "curve": None}
        return {"scores": [score], "minutes": 1.0}

    def told(**changed: object) -> tuple[str, str]:
        found = render(parsed, {("first", 0): result(), ("second", 1): result(**{"seed": 1, **changed})})
        return found["rows"][1]["cells"]["test"]["mark"], found["markdown"]

    mark, text = told()
    assert mark == "" and "Not made as" not in text
    assert told(split_hash="cd", images=2)[0] == "", "another seed may hold out other photos"
    mark, text = told(seed=0, split_hash="cd", images=2)
    assert mark == "a" and "split_hash: cd / ab; images: 2 / 1" in text, "the same seed may not"
    assert told(threshold=0.4, threshold_source="best on val")[0] == "a"
    mark, text = told(crf="afa", tags_at_test=True, crop=64)
    assert mark == "a" and "tags_at_test: True / False; crf: afa / None" in text and "crop" not in text.split("(a)")[-1]
    mixed = render(parsed, {("first", 0): result(), ("first", 1): result(seed=1, scales=[2.0])})
    assert "among seeds, scales: [1.0] / [2.0]" in mixed["markdown"]
    assert "| first | test | 61.5 | 50.0 ± 0.0 | -11.5 | – |" in mixed["markdown"]


@pytest.mark.parametrize(
    "change,message",
    [
        (('run_of: first, set: ["', 'run_of: none, set: ["'), "no row before it that trains"),
        (('run_of: first, set: ["', 'run_of: first, set: ["method.warmup=1", "'), "sets method.warmup=1"),
        (
            ('run_of: first, set: ["', 'run_of: first, set: ["method.inference=online", "'),
            "only label and evaluate can",
        ),
        (("key: peak,", "key: top1,"), "unknown key 'top1'"),
        (("score: spread, key: std", "score: spread, key: miou"), "unknown key 'miou'.*mean, std"),
        (("score: segmenter, key: recall", "score: segmenter, key: peak"), "'peak' is of score 'cam'"),
        (('key: peak, set: ["label.', 'key: peak, set: ["train.'), "sets train.cam_scales"),
        (("title: half", "title: best"), "two columns are called 'best'"),
        (("{name: first, ", "{name: first, printed: {bst: 5}, "), "value for 'bst'.*'best'"),
        (("run_of: first,", "run_of: first, label: true,"), "besides seeds it has 'set' only"),
        (("run_of: first,", "run_of: first, seeds: [4],"), "not trained with"),
    ],
)
def test_broken_variations_are_refused_by_name(varied: str, change: tuple[str, str], message: str) -> None:
    text = Path(varied).read_text()
    assert change[0] in text
    Path(varied).write_text(text.replace(*change, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_table(varied)


def test_stages_of_a_row(tmp_path: Path, table: str) -> None:
    text = TABLE.replace("rows:", "  - {title: masks, split: train, score: masks}\nrows:").split("  - {name: first")[0]
    text = text.replace("seeds: [0, 1]", "  - 'stages={classifier: {}, masks: {}, segmenter: {train: {steps: 3}}}'")
    text += '  - {name: staged, stages: true, set: ["method.head_options={hidden: 8}", method.warmup=1]}\n'
    text += '  - {name: plain, set: ["method.head_options={hidden: 8}", method.warmup=1]}\n'
    path = Path(table)
    path.write_text(text, encoding="utf-8")
    data, out = tmp_path / "scenes", tmp_path / "out"
    plan = reproduce(table, data, out, plan=True)["plan"]
    assert [line["steps"] for line in plan] == [5, 2] and plan[0]["bytes"] > plan[1]["bytes"]
    staged, plain = reproduce(table, data, out)["rows"]
    assert staged["cells"]["masks"]["mean"] > 0 and plain["cells"]["masks"] is None
    assert staged["cells"]["test"]["protocol"]["method"] == "supervised", "the stage's segmenter"
    assert plain["cells"]["test"]["protocol"]["method"] == "baseline"
    assert "supervision: tags / masks" in (out / "tiny" / "table.md").read_text()
    home = out / "tiny" / "staged" / "seed0"
    assert (home / "segmenter" / "model").is_dir() and not list(home.rglob("checkpoints"))
    assert json.loads((home / "result.json").read_text())["stage_minutes"].keys() >= {"train", "masks", "segmenter"}
    path.write_text(text.replace("{steps: 3}", "{steps: 4}"), encoding="utf-8")
    with pytest.raises(ConfigError, match="staged/seed0: was finished with other settings: stages.segmenter differ"):
        reproduce(table, data, out)


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
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        reproduce(table, tmp_path / "scenes", tmp_path / "out", ["train.devices=2"])
    with pytest.raises(ConfigError, match="full and small"):
        reproduce(table, tmp_path / "scenes", tmp_path / "out", budget="smal")


def test_rows_that_are_not_built_are_shown_and_never_run(table: str, tmp_path: Path) -> None:
    text = TABLE + "not_built:\n  - {name: third, why: nobody knows how, printed: {test: 70.25}}\n"
    Path(table).write_text(text, encoding="utf-8")
    parsed = read_table(table)
    assert {job.row.name for job in make_jobs(parsed, table, tmp_path, tmp_path, (), None, None)} == {"first", "second"}
    with pytest.raises(ConfigError, match="row 'third' is not built.*nobody knows how"):
        make_jobs(parsed, table, tmp_path, tmp_path, (), ["third"], None)
    lines = render(parsed, {})["markdown"].splitlines()
    assert "| third | – | – | – | (printed 70.25) | not built |  |" in lines
    assert "- third is not built: nobody knows how" in lines
    for old, new, message in (
        ("name: third", "name: first", "two rows are called 'first'"),
        ("why: nobody knows how, ", "", "why"),
        ("{test: 70.25}", "{tset: 70.25}", "row 'third' has a value for 'tset'"),
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
