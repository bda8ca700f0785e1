"""How long the parts of a run take on this machine, measured on few photos with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from pydantic import BaseModel
from torch.nn import functional as F

from tagmask.config import EncoderConfig, RunConfig
from tagmask.data import Collection, TrainLoader, TrainViews, read_image, tag_vector
from tagmask.encoders.saliency import open_saliency
from tagmask.label import Inference, Look
from tagmask.methods import Method, build_method
from tagmask.registry import METHODS
from tagmask.training import make_fabric, readers
from tagmask.training.step import TrainStep, to_device
from tagmask.types import Batch
from tagmask.workflow.opened import Run
from tagmask.workflow.stages import Stages


def time_step(config: RunConfig, collection: Collection, photos: int | None = None) -> float:
    """Seconds of one training step after all warm-ups, measured here: batch, forward, backward, optimiser, after_step.

    photos: of the batch, so many are measured and the time is scaled; default: all.

    A batch is made here while nothing else runs; ``train.workers`` make batches beside the step, which then waits only
    where they are slower than it. Weights are random, and so are the masks of a method that reads masks: those of
    earlier rows and stages need not be there.
    """
    micro = config.train.batch_size // config.train.accumulate
    part = min(micro, photos or micro)
    changed = {"devices": 1, "nodes": 1, "strategy": "auto", "batch_size": part * config.train.accumulate}
    train = config.train.model_copy(update=changed)
    fabric = make_fabric(train)
    method = build_method(bare(config), len(collection.classes))
    step = TrainStep(method, config.model_copy(update={"train": train}), fabric)
    loader = TrainLoader(
        collection.split("train"),
        len(collection.classes),
        TrainViews(config.views, method.wanted_views),
        batch_size=part,
        steps=2,
        seed=config.seed,
        workers=0,
        parts=train.accumulate,
    )
    made = iter(loader)
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        batches = [next(made) for _ in range(train.accumulate)]
        loading = time.perf_counter() - began
        if method.reads_masks:
            for batch in batches:
                batch.masks = _blocks(batch, len(collection.classes))
        batches = [to_device(batch, fabric, train) for batch in batches]
        began = now(fabric.device)
        step.run(iter(batches), train.steps - 1)
        computing = now(fabric.device) - began
    workers = readers(train, fabric.device)
    return (max(computing, loading / workers) if workers else computing + loading) * micro / part


def expected_minutes(run: Run, stages: Stages) -> dict[str, float]:
    """Minutes that the steps of ``tagmask run`` are expected to take on this machine, by name.

    Measured are one training step of each network, on four photos, and what is made of one photo. The estimate of
    quality is counted as twice a mask. Not counted are starting, weights, suspects, checkpoints, the report and the
    classifier's scores. Networks that are trained already take no time.
    """
    collection, config = run.collection, run.config
    listed = {split: collection.listed(split) for split in ("train", "val", "test")}
    tagged = {split: [item for item in items if item.tags is not None] for split, items in listed.items()}
    shown = next((item for items in tagged.values() for item in items if item.tags), None)
    if shown is None:
        return {}
    photo, tags = read_image(shown.image), tag_vector(shown.tags or (), len(collection.classes))
    untagged = sum(item.tags is None for item in collection.split("all"))
    delivered = len(tagged["train"]) + len(tagged["val"])

    def steps_of(part: Run) -> float:
        return 0.0 if part.trained else time_step(part.config, collection, 4) * part.config.train.steps

    def photo_by(own: RunConfig, look_at: Callable[[Look], object]) -> float:
        inference = Inference(on_device(own, collection).eval(), own)
        return second(lambda: look_at(Look(inference, photo, tags)), inference.device)

    compares = METHODS.get(config.method.name).has_cams and shown.mask is not None
    seconds = {"train": steps_of(run)}
    named = [] if config.stages is None else config.stages.named()
    looked = photo_by(config, lambda look: (compares and look.refined, look.mask))
    seconds["masks"] = looked * (len(tagged["train"]) if "masks" in named else delivered)
    if config.guides.saliency is not None:
        saliency = open_saliency(config.guides.saliency, config.encoder.weights_dir)
        seconds["masks"] += second(lambda: saliency.compute(photo), torch.device("cpu")) * delivered
    if "affinity" in named:
        seconds["affinity"] = steps_of(stages.part("affinity"))
    if "cams" in named:
        seconds["cams"] = looked * len(tagged["train"])
    last, own = config, looked
    if stages.segmenters:
        last = stages.part("segmenter").config
        own = photo_by(last, lambda look: look.mask)
        one = time_step(last, collection, 4) * last.train.steps
        for number, name in enumerate(stages.segmenters, start=1):
            step = f"round {number}" if "rounds" in named else name
            made = own * len(tagged["train"]) if number > 1 else 0.0
            seconds[step] = 0.0 if stages.part(name).trained else one + made
    if "rounds" in named:
        seconds["final masks"] = own * delivered
    if METHODS.get(last.method.name).has_segmenter:
        scored = sum(item.mask is not None for split in ("val", "test") for item in listed[split])
        predicted = photo_by(last, lambda look: look.prediction)
        views = 2 * predicted * sum(map(len, tagged.values())) if stages.segmenters else 0.0
        seconds["evaluate"], seconds["predict"] = scored * predicted + views, untagged * predicted
    return {name: value / 60 for name, value in seconds.items()}


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def second(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second of two calls: the first warms up."""
    seconds = 0.0
    for _ in range(2):
        began = now(device)
        call()
        seconds = now(device) - began
    return seconds


def _blocks(batch: Batch, classes: int) -> torch.Tensor:
    """Label maps uint8 (B,H,W) of 4 x 4 blocks, each of one label."""
    labels = torch.randint(0, classes + 1, (len(batch.ids), 4, 4), generator=torch.Generator().manual_seed(0))
    return F.interpolate(labels[:, None].float(), size=batch.images.shape[-2:], mode="nearest")[:, 0].byte()


def on_device(config: RunConfig, collection: Collection) -> Method:
    method = build_method(bare(config), len(collection.classes)).to(make_fabric(config.train).device)
    if config.train.channels_last:
        method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def bare(config: RunConfig) -> RunConfig:
    """The configuration with random weights in every network: time and size are the same."""
    result = config.model_copy(deep=True)
    for encoder in encoders_of(result):
        encoder.weights = "none"
    return result


def encoders_of(config: RunConfig) -> list[EncoderConfig]:
    """Settings of every encoder in the configuration, those of the method's own networks included."""
    parts: list[BaseModel] = [config.encoder, config.method]
    for part in parts:  # grows
        parts += [value for _, value in part if isinstance(value, BaseModel)]
    return [part for part in parts if isinstance(part, EncoderConfig)]
