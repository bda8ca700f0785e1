"""What every method must do. A method's test subclasses MethodContract and names its settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagmask.config import RunConfig, load_config
from tagmask.data import Item, open_data
from tagmask.errors import ConfigError
from tagmask.methods import Method, build_method
from tagmask.training import RunFolder, load_model, save_model, train_method
from tagmask.types import IGNORE, Batch
from tagmask.workflow.train import check_schedule
from tests.encoders import small_swin

CLASSES = 3
SIZE = 64
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ENCODERS = {"cnn": "test_resnet", "vit": "test_vit", "swin": small_swin.NAME, "mit": "mit_b0"}
"""The smallest encoder of each kind."""
FULL_SIZE = {"cnn": "resnet18", "vit": "vit_tiny_patch16_224", "swin": "swin_tiny_patch4_window7_224"}


def squares(seed: int = 0, masks: bool = False, size: int = SIZE, images: int = 4) -> Batch:
    """Noise images, each with one coloured square of half its side: class k+1 is colour channel k."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(images, 3, size, size, generator=generator) * 0.3
    labels = torch.zeros(images, size, size, dtype=torch.uint8)
    tags = torch.zeros(images, CLASSES)
    half = size // 2
    for i in range(images):
        k = i % CLASSES
        y, x = (int(v) for v in torch.randint(0, half, (2,), generator=generator))
        pixels[i, k, y : y + half, x : x + half] += 0.6
        labels[i, y : y + half, x : x + half] = k + 1
        tags[i, k] = 1
    labels[:, -4:] = IGNORE
    boxes = torch.tensor([[0, 0, size, size - 4]]).repeat(images, 1)
    return Batch(pixels, tags, boxes, {}, [f"s{i}" for i in range(images)], generator, labels if masks else None)


def tiny(method: dict[str, Any], encoder: str = ENCODERS["cnn"], **sections: Any) -> RunConfig:
    """A configuration that runs in a blink: untrained encoder, small crops."""
    base = {
        "encoder": {"name": encoder, "weights": "none"},
        "views": {"crop": SIZE, "scale": [0.8, 1.2]},
        "train": {
            "steps": 4, "batch_size": 4, "lr": 1e-3, "warmup": 0, "workers": 0, "checkpoint_every": 2,
            "accelerator": "cpu", "log_every": 1, "channels_last": False,
        },
    }  # fmt: skip
    return load_config(base, {"method": method}, sections)


def scales_and_mirrors(
    forward: Callable[[Tensor], Tensor], image: Tensor, scales: list[float], flip: bool = True
) -> Tensor:
    """CAMs (B,C,H,W) written out: at each scale the larger of a map and its mirror image's, cut at 0; their sum,
    brought to [0,1]. forward: (B,3,·,·) → class maps (B,C,·,·)."""
    height, width = image.shape[-2:]
    total: Tensor = torch.zeros(())
    for scale in scales:
        size = (round(scale * height), round(scale * width))
        scaled = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        seen = [F.interpolate(forward(scaled), size=(height, width), mode="bilinear", align_corners=False)]
        if flip:
            mirrored = forward(scaled.flip(-1))
            seen.append(F.interpolate(mirrored, size=(height, width), mode="bilinear", align_corners=False).flip(-1))
        total = total + torch.stack(seen).amax(0).clamp(min=0)
    low, high = total.amin((-2, -1), keepdim=True), total.amax((-2, -1), keepdim=True)
    return (total - low) / (high - low + 1e-5)


class MethodContract:
    """What a method's test class sets: ``settings``, the method's section of a configuration; ``terms``, which parts of
    the method each loss term must reach, and only those. The other attributes have defaults that suit most methods."""

    settings: ClassVar[dict[str, Any]]
    terms: ClassVar[dict[str, set[str]]]
    encoder: ClassVar[str] = ENCODERS["cnn"]
    """That the tests run on which are not about kinds of encoders."""
    encoders: ClassVar[tuple[str, ...]] = ("cnn", "vit", "swin", "mit")
    """Kinds of encoders that the method runs on."""
    sections: ClassVar[dict[str, Any]] = {}
    """Further sections of the configuration, such as views."""
    idle: ClassVar[list[dict[str, Any]]] = []
    """Settings with which nothing waits for any phase of the method."""
    step: ClassVar[int] = 10
    """At which all terms are on."""
    size: ClassVar[int] = SIZE
    images: ClassVar[int] = 4
    updates: ClassVar[int] = 28
    """Steps of AdamW at ``rate``, 3 times that for new layers, in which the total falls below 0.6 of its start."""
    rate: ClassVar[float] = 3e-3

    def config(self, encoder: str | None = None, changes: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
        """A configuration of the method, with changes of its settings."""
        settings = self.settings | (changes or {})
        return tiny(settings, encoder or self.encoder, **{"views": {"crop": self.size}, **self.sections, **sections})

    def build(self, encoder: str | None = None) -> Method:
        torch.manual_seed(0)
        return build_method(self.config(encoder), CLASSES)

    def batch(self, masks: bool = False) -> Batch:
        """With every view that the method wants."""
        return squares(0, masks, self.size, self.images)

    def test_loss_falls_when_overfitting_four_images(self) -> None:
        method = self.build().train()
        batch = self.batch(method.reads_masks)
        optimizer = torch.optim.AdamW(method.param_groups(self.rate, 3.0, freeze_norm=False))
        totals = []
        for _ in range(self.updates):
            losses = method.losses(batch, self.step)
            optimizer.zero_grad()
            losses.total.backward()
            optimizer.step()
            method.after_step(self.step)
            totals.append(losses.total.item())
        assert sum(totals[-3:]) / 3 < 0.6 * totals[0], totals

    def test_each_term_reaches_what_it_should_and_only_that(self) -> None:
        method = self.build().train()
        batch = self.batch(method.reads_masks)
        terms = method.losses(batch, self.step).terms
        assert set(terms) == set(self.terms)
        for term, expected in self.terms.items():
            method.zero_grad(set_to_none=True)
            terms[term].backward(retain_graph=True)
            reached = {
                name
                for name, part in method.named_children()
                if any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
            }
            assert reached == expected, term

    def test_total_is_the_weighted_sum_of_finite_terms(self) -> None:
        losses = self.build().train().losses(self.batch(masks=True), self.step)
        assert all(torch.isfinite(value) and value.dim() == 0 for value in losses.terms.values())
        assert torch.isfinite(losses.total) and losses.total.requires_grad

    def test_param_groups_hold_every_trained_parameter_once(self) -> None:
        method = self.build()
        groups = method.param_groups(1.0, 10.0, freeze_norm=True)
        listed = [id(p) for group in groups for p in group["params"]]
        assert len(listed) == len(set(listed))
        assert set(listed) == {id(p) for p in method.parameters() if p.requires_grad}
        rates = {group["name"]: group["lr"] for group in groups}
        assert rates.get("encoder") == (None if method.reads_classes else 1.0)
        assert rates.get("heads", 10.0) == 10.0 and "norm" not in rates
        frozen = [m for m in method.encoder.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
        assert frozen and not any(p.requires_grad for m in frozen for p in m.parameters())

    @pytest.mark.parametrize("kind", list(ENCODERS))
    def test_shapes_and_ranges_on_any_encoder(self, kind: str) -> None:
        self.check_shapes_and_ranges(kind, ENCODERS[kind])

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", list(FULL_SIZE))
    def test_shapes_and_ranges_on_encoders_of_full_size(self, kind: str) -> None:
        self.check_shapes_and_ranges(kind, FULL_SIZE[kind])

    def check_shapes_and_ranges(self, kind: str, encoder: str) -> None:
        if kind not in self.encoders:
            pytest.skip(f"does not run on {kind}")
        method = self.build(encoder)
        losses = method.train().losses(self.batch(method.reads_masks), self.step)
        assert torch.isfinite(losses.total)
        method.eval()
        height, width = self.size + 1, self.size - 15
        images = torch.rand(2, 3, height, width)
        tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        if method.has_cams:
            cams = method.cams(images, tags)
            assert cams.shape == (2, CLASSES, height, width) and cams.dtype == torch.float32
            assert cams.min() >= 0 and cams.max() <= 1
            assert cams[0, 1].abs().max() == 0 and cams[1].abs().max() == 0
            assert method.cams(images).shape == cams.shape
        if method.has_segmenter:
            logits = method.segment(images)  # type: ignore[operator]
            assert logits.shape == (2, CLASSES + 1, height, width) and logits.dtype == torch.float32
        scores = method.class_scores(images)
        assert scores is None or (scores.shape == (2, CLASSES) and scores.min() >= 0 and scores.max() <= 1)

    def test_saved_model_gives_the_same_numbers(self, tmp_path: Path) -> None:
        method = self.build().eval()
        config = self.config()
        save_model(tmp_path / "model", method, config, ["a", "b", "c"])
        save_model(tmp_path / "again", method, config, ["a", "b", "c"])
        digests = [json.loads((tmp_path / name / "classes.json").read_text())["digest"] for name in ("model", "again")]
        assert digests[0] == digests[1], "masks are told apart by the model that made them"
        loaded, _, classes = load_model(tmp_path / "model")
        assert classes == ["a", "b", "c"]
        images = torch.rand(1, 3, self.size, self.size)
        for name in ("cams", "segment", "class_scores"):
            if name == "cams" and not method.has_cams or name == "segment" and not method.has_segmenter:
                continue
            before, after = getattr(method, name)(images), getattr(loaded, name)(images)
            assert before is after or torch.equal(before, after), name

    def test_resume_gives_the_numbers_of_an_uninterrupted_run(self, tmp_path: Path) -> None:
        config = self.config(data={"source": "demo", "root": str(tmp_path / "scenes"), "demo_images": 12})
        whole = self.train(config, tmp_path / "whole", stop=None)
        self.train(config, tmp_path / "parts", stop=3)
        parts = self.train(config, tmp_path / "parts", stop=None)
        assert whole.keys() == parts.keys()
        assert self.seen == [3, 4], "it goes on from the checkpoint"
        for name, value in whole.items():
            assert torch.equal(value, parts[name]), name

    def test_parts_of_a_batch_give_the_numbers_of_the_whole(self) -> None:
        from tests.methods.shares import numbers

        torch.testing.assert_close(numbers(self, parts=2), numbers(self), rtol=1e-5, atol=1e-5)

    @gpu
    def test_a_gpu_gives_the_numbers_of_the_cpu(self) -> None:
        images, tags = self.batch().images, self.batch().tags
        found: dict[str, dict[str, Tensor]] = {}
        for device in ("cpu", "cuda"):
            method = self.build().to(device).train()
            for module in method.modules():
                if isinstance(module, nn.Dropout | nn.Dropout2d):
                    module.p = 0.0  # drawn otherwise on a GPU
            batch = self.batch(method.reads_masks)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                losses = method.losses(batch.to(device, batch.generator), self.step)
                losses.total.backward()
                method.after_step(self.step)
                numbers = {**losses.terms, "total": losses.total}
                for name, part in method.named_children():
                    grads = [p.grad.square().sum() for p in part.parameters() if p.grad is not None]
                    numbers |= {f"gradient of {name}": torch.stack(grads).sum().sqrt()} if grads else {}
                method = self.build().to(device).eval()
                with torch.no_grad():
                    if method.has_cams:
                        numbers["cams"] = method.cams(images.to(device), tags.to(device))
                    if method.has_segmenter:
                        numbers["segment"] = method.segment(images.to(device))  # type: ignore[operator]
                    scores = method.class_scores(images.to(device))
            if scores is not None:
                numbers["scores"] = scores
            assert all(value.device.type == device for value in numbers.values())
            found[device] = {name: value.detach().cpu() for name, value in numbers.items()}
        torch.testing.assert_close(found["cuda"], found["cpu"], rtol=5e-3, atol=5e-4)

    @gpu
    def test_trains_and_resumes_on_a_gpu(self, tmp_path: Path) -> None:
        data = {"source": "demo", "root": str(tmp_path / "scenes"), "demo_images": 12}
        train = {"accelerator": "gpu", "precision": "fp32", "optimizer": "sgd", "lr": 1e-4, "channels_last": True}
        config = self.config(data=data, train=train)
        whole = self.train(config, tmp_path / "whole", stop=None)
        self.train(config, tmp_path / "parts", stop=3)
        parts = self.train(config, tmp_path / "parts", stop=None)
        torch.manual_seed(0)
        untrained = build_method(config, len(open_data(config.data).classes))
        floats = {name: value for name, value in untrained.state_dict().items() if value.is_floating_point()}
        way = [(whole[name].cpu() - value).flatten() for name, value in floats.items()]
        apart = [(whole[name] - parts[name]).cpu().flatten() for name in floats]
        assert self.seen == [3, 4], "it goes on from the checkpoint"
        # Not the same bits: kernels on a GPU add up in any order.
        assert torch.cat(apart).norm() < 0.05 * torch.cat(way).norm()

    def test_a_phase_that_never_begins_is_refused(self) -> None:
        """Training has four steps."""
        phases = [name for name, waited_for in self.config().method.phases().items() if waited_for]
        early = dict.fromkeys(phases, 0)
        for name in phases:
            with pytest.raises(ConfigError, match=rf"method\.{name}\b"):
                check_schedule(self.config(changes=early | {name: 9}))
            check_schedule(self.config(changes=early | {name: 3}))

    def test_a_phase_that_nothing_waits_for_stops_no_run(self) -> None:
        late = {"name": self.settings["name"]} | dict.fromkeys(self.config().method.phases(), 9)
        for off in self.idle:
            check_schedule(tiny(late | off))
            # Any weight alone has a phase that waits for it, once what it needs beside it is there.
            for weight in (name for name in off if name.startswith("weight_")):
                with pytest.raises(ConfigError, match=r"method\."):
                    check_schedule(tiny(late | off | {weight: 0.1}))

    def train(self, config: RunConfig, out: Path, stop: int | None) -> dict[str, Tensor]:
        """Train into ``out`` until ``stop`` steps are done, then a kill comes; returns the weights. ``seen``: of each
        step, how many were done then."""
        collection = open_data(config.data)
        items = collection.split("train")
        torch.manual_seed(0)
        method = build_method(config, len(collection.classes))
        if not method.reads_masks:
            # Masks that do not exist: a method that learns from tags must never open them.
            items = [Item(i.id, i.image, i.tags, Path("nowhere.png")) for i in items]
        config.train.evaluate_every = 1
        self.seen: list[int] = []

        def watch(method: Method, done: int) -> dict[str, float]:
            self.seen.append(done)
            if done == stop:
                raise KeyboardInterrupt
            return {}

        try:
            train_method(method, config, items, collection.classes, RunFolder(out), resume=True, evaluate=watch)
        except KeyboardInterrupt:
            assert stop is not None
        return {k: v.clone() for k, v in method.state_dict().items()}


class SlowTraining(MethodContract):
    """For a second set of settings of a method: the contract tests that train are left to ``make test-slow``."""

    @pytest.mark.slow
    def test_loss_falls_when_overfitting_four_images(self) -> None:
        super().test_loss_falls_when_overfitting_four_images()

    @pytest.mark.slow
    def test_resume_gives_the_numbers_of_an_uninterrupted_run(self, tmp_path: Path) -> None:
        super().test_resume_gives_the_numbers_of_an_uninterrupted_run(tmp_path)

    @pytest.mark.slow
    @gpu
    def test_trains_and_resumes_on_a_gpu(self, tmp_path: Path) -> None:
        super().test_trains_and_resumes_on_a_gpu(tmp_path)
