"""README.md says nothing that does not work: its example runs, its commands and names exist."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from tagmask.cli import app
from tagmask.config import load_config, named_configs
from tagmask.registry import HEADS, METHODS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_operators_example_runs() -> None:
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", README, flags=re.S) if "random_walk" in b]
    names: dict = {}
    exec(code, names)  # noqa: S102
    assert names["refined"].shape == names["sharp"].shape == (1, 3, 96, 128) and names["walked"].shape == (3, 24, 32)


def test_commands_have_the_options_that_are_shown() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    lines = [line.partition("#")[0] for line in README.splitlines() if line.startswith("tagmask ")]
    assert len(lines) > 6
    for line in lines:
        verb, *words = re.sub(r'"[^"]*"', "quoted", line).split()[1:]
        known = {flag for option in verbs[verb].params for flag in option.opts}
        assert {word for word in words if word.startswith("-")} <= known, line
        for name in re.findall(r"-c (\S+)", line):
            load_config(name)


def test_methods_heads_configurations_and_links_exist() -> None:
    listed = re.findall(r"\| \[`(\w+)`\]\(docs/methods", README)
    assert set(METHODS.names()) - set(listed) <= {"supervised"} and set(listed) <= set(METHODS.names())
    heads = re.search(r"Heads: ([^(]*)", README)
    assert heads is not None and set(re.findall(r"`(\w+)`", heads.group(1))) == set(HEADS.names())
    assert {"deeplab_v2", "deeplab_largefov", "upernet_swin", "tscd_voc"} <= set(named_configs())
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
