"""What the verbs share: the app, options, the settings that they name, and output."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from tagmask.errors import ConfigError
from tagmask.lock import speaks

app = typer.Typer(
    name="tagmask",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tagmask {version('tagmask')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    """From image tags to pixel masks: train on photos of which only the content is known."""


Words = Annotated[
    list[str] | None, typer.Argument(metavar="[DATA] [KEY=VALUE]...", help="folder of the data; settings to override")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to override")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="run folder", show_default=False)]
Configs = Annotated[list[str] | None, typer.Option("--config", "-c", help="YAML file or packaged name; repeatable")]
Tags = Annotated[Path | None, typer.Option(help="CSV or JSONL of tags")]
Masks = Annotated[
    Path | None, typer.Option(help="folder of true masks, for evaluation; to learn from with data.tags_from=masks")
]
Method = Annotated[str | None, typer.Option("--method", "-m", help="name of a method, see 'tagmask methods'")]
Encoder = Annotated[str | None, typer.Option("--encoder", "-e", help="name of an encoder")]
Weights = Annotated[str | None, typer.Option(help="auto, none, package, a checkpoint file, or a finished run")]
Seed = Annotated[int | None, typer.Option(help="seed of everything random")]
Out = Annotated[Path, typer.Option("--out", "-o", help="run folder to write")]
LabelsOf = Annotated[
    Path | None,
    typer.Option("--labels-of", metavar="RUN", help="train a segmenter on this run's masks of its own photos"),
]
Engine = Annotated[
    Literal["local", "ray"] | None,
    typer.Option(help="who makes masks: local, this process; ray, workers of Ray, see settings engine.*"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs, on standard output")]


def settings(
    words: list[str] | None,
    tags: Path | None = None,
    masks: Path | None = None,
    method: str | None = None,
    encoder: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """What the command line says: a mapping of sections, and the KEY=VALUE words. Raises ConfigError."""
    places = [w for w in words or [] if "=" not in w or os.path.exists(w)]
    overrides = [w for w in words or [] if w not in places]
    if len(places) > 1:
        raise ConfigError(f"One data folder is expected, got {', '.join(places)}. Settings are written key=value.")
    values: dict[str, Any] = {}
    if places and places[0].endswith(".tar") and not os.path.isdir(places[0]):
        values["data"] = {"shards": places[0]}
    elif places:
        if not os.path.exists(places[0]):  # unlike Path.exists, it takes names of any length
            raise ConfigError(f"{places[0]}: no such folder.")
        values["data"] = {"root": places[0]}
    for section, key, value in [
        ("data", "tags", tags),
        ("data", "masks", masks),
        ("method", "name", method),
        ("encoder", "name", encoder),
        ("encoder", "weights", weights),
    ]:
        if value is not None:
            values.setdefault(section, {})[key] = str(value)
    if seed is not None:
        values["seed"] = seed
    return values, overrides


def with_engine(overrides: list[str] | None, engine: str | None) -> list[str]:
    """Settings that override others, with what ``--engine`` says."""
    return [*(overrides or []), *([f"engine.name={engine}"] if engine else [])]


def print_json(value: Any) -> None:
    """JSON on standard output, nothing else there."""
    typer.echo(json.dumps(value, indent=1, default=str))


class _Screen(Console):
    @property
    def quiet(self) -> bool:  # type: ignore[override]
        return not speaks()

    @quiet.setter
    def quiet(self, value: bool) -> None:
        """Who speaks may change until there is something to say."""


def screen() -> Console:
    """Where people read: standard output; of processes that are launched together, that of the one that speaks."""
    return _Screen()


def say(text: str, style: str = "") -> None:
    """Print a line on standard output as it is, however long."""
    screen().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
