"""The verbs as a user types them, for tests."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from tagmask.cli import app

TINY = [
    "encoder.name=test_resnet", "encoder.weights=none", "views.crop=64", "train.steps=4", "train.batch_size=4",
    "train.workers=0", "train.warmup=1", "train.accelerator=cpu", "method.warmup=2",
    "method.head_options={hidden: 16}", "label.cam_scales=[1.0]", "evaluate.bootstrap=20",
]  # fmt: skip
SPLITS = ["data.train=train.txt", "data.val=val.txt", "data.test=test.txt"]


def call(*words: object, ok: bool = True, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(app, [str(w) for w in words], env=env)
    if ok:
        assert result.exit_code == 0, (result.output, result.exception)
    return result


def raise_error(*words: object) -> None:
    """Run a verb that must fail, and raise what it raised."""
    result = call(*words, ok=False)
    assert result.exception is not None, result.output
    raise result.exception
