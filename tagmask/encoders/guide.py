"""The guide: a frozen network whose keys tell which positions of an image are similar. Used in training only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import timm
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from tagmask.config import EncoderConfig, Strict
from tagmask.encoders import build_encoder
from tagmask.encoders.base import Encoder
from tagmask.encoders.guide_cache import FORMAT, GuideCache, content_key
from tagmask.encoders.timm_vit import TimmViT
from tagmask.errors import ConfigError, WeightsError
from tagmask.strict import Block, Place, Positive, Scales
from tagmask.tensors import inside
from tagmask.types import Batch, View

DINO = "vit_small_patch8_224.dino"


class GuideConfig(Strict):
    """Which network is the guide, and which of its features are used."""

    encoder: EncoderConfig = EncoderConfig(name=DINO)
    block: Block = Field(-1, description="ViT: block whose queries and keys are taken; -1 is the last")
    scales: Scales = Field([1.0], description="of the images; keys and queries are summed over them")
    cue: Literal["minmax", "binary", "none"] = Field(
        "minmax", description="foreground cue; none where the guide has no class token"
    )
    cut: float = Field(-0.5, ge=-1, le=1, description="threshold of the binary cue")
    graph: Literal["features", "shuffled", "noise"] = Field(
        "features",
        description="ablations: shuffled: keys at randomly permuted positions; noise: random keys, whose cosines in "
        "hundreds of channels are all near 0, so that a position is connected to itself alone",
    )
    precision: Literal["train", "fp32", "half"] = Field(
        "train", description="train: that of the training step; half: float16 on GPUs, bfloat16 on CPUs"
    )
    view: Literal["crop", "photo"] = Field(
        "crop", description="crop: the guide gets the crop; photo: the whole photo, and its keys are cropped"
    )
    cache: Place | None = Field(None, description="folder that keeps the guide's features of photos")
    cache_gb: Positive = Field(40.0, description="largest size of the folder, in 10^9 bytes")

    @model_validator(mode="after")
    def _cacheable(self) -> GuideConfig:
        if self.cache is not None and self.view == "crop":
            raise ValueError("a cache needs view: photo; crops differ in each step, so no entry would be used twice")
        return self


class Guidance(NamedTuple):
    """keys: float32 (B,D,h,w), heads concatenated. query: (B,D) of the class token, None without cue. valid: bool
    (B,h,w), positions whose centre lies in the photo, not in padding."""

    keys: Tensor
    query: Tensor | None
    valid: Tensor


class Guide:
    """Keys of a frozen encoder, and the query of its class token, for batches of images.

    For a ViT these are the keys of one block, heads concatenated; nothing after that block's projection is computed.
    Its images are first resized to whole patches, so that its grid covers exactly the image. Other encoders (tagmask's
    addition; the paper has ViTs only) give their last map, each channel standardised over the photo, so that cosines
    are spread around 0 as those of keys are. They have no cue.

    ``view: photo`` (tagmask's addition): the guide gets the batch's view 'photo', the whole photo at a fixed size. Its
    keys, normalised to length 1, are sampled at the crop's positions (bilinear). With ``cache`` a photo needs a single
    pass in all runs. An entry holds keys and query in half precision; its key is a hash of the photo's pixels (8 bits
    a channel), size and box, of the network, its weights, block, scales and precision, and of timm's version.

    It is no ``nn.Module``, so that a method's parameters and saved state do not include it. It is built at its first
    use, which inference never makes; a copy of it is not built. Random weights (``encoder.weights: none``) are the
    same in every run, so that a resumed run has the same guide.
    """

    def __init__(self, config: GuideConfig) -> None:
        self.config = config
        self._encoder: Encoder | None = None
        self._identity = ""
        limit = round(config.cache_gb * 1e9)
        self.cache = None if config.cache is None else GuideCache(config.cache.expanduser(), limit)

    def __deepcopy__(self, memo: object) -> Guide:
        return Guide(self.config)

    def build(self, device: torch.device) -> Encoder:
        """The frozen encoder on ``device``. Raises what ``build_encoder`` does, and ConfigError if the encoder lacks
        the features that ``config`` names."""
        if self._encoder is None:
            encoder = self._built()
            if self.cache is not None:
                said = self.config.model_dump_json(
                    include={"encoder", "block", "scales"}, exclude={"encoder": {"weights", "weights_dir"}}
                )
                weights = (part for named in encoder.state_dict().items() for part in named)
                self._identity = content_key(f"{FORMAT} {timm.__version__}", said, *weights)
            self._encoder = encoder
        if self._encoder.mean.device != device:
            self._encoder.to(device)
        return self._encoder

    def _built(self) -> Encoder:
        cfg = self.config
        try:
            # Training draws from the global generators, and its numbers must not depend on when the guide is built:
            # only the CPU's generator is seeded, and it is restored.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                encoder = build_encoder(cfg.encoder)
            if isinstance(encoder, TimmViT):
                encoder.resolve([cfg.block])
        except (ConfigError, WeightsError) as error:
            raise type(error)(f"The guide (for 'encoder.' read 'method.guide.encoder.'): {error}") from error
        if cfg.cue != "none" and not (isinstance(encoder, TimmViT) and encoder.has_class_token):
            raise ConfigError(
                f"method.guide.cue={cfg.cue} needs a class token, and guide '{cfg.encoder.name}' has none; set "
                f"method.guide.cue=none, or method.guide.encoder.name to a ViT such as {DINO}."
            )
        encoder.freeze()
        return encoder

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Guidance:
        """Guidance for a batch, from its images or, with ``view: photo``, from its view 'photo'.

        The grid is that of the first scale; keys of further scales are resized to it (bilinear) and added. Raises
        ConfigError if the batch has no such view.
        """
        cfg = self.config
        if cfg.view == "photo":
            if "photo" not in batch.views:
                raise ConfigError("method.guide.view=photo needs the view 'photo'; load the batch with that view.")
            keys, query = self._through(batch.views["photo"])
        else:
            keys, query = self.see(batch.images, batch.boxes)
        valid = inside(batch.boxes, batch.images.shape[-2:], keys.shape[-2:])
        if cfg.graph == "shuffled":
            keys = _shuffle(keys, valid, batch.draw(torch.rand, valid[0].numel()))
        elif cfg.graph == "noise":
            keys = batch.draw(torch.randn, *keys.shape[1:]).to(keys)
            query = None if query is None else batch.draw(torch.randn, *query.shape[1:]).to(query)
        return Guidance(keys, query if cfg.cue != "none" else None, valid)

    def _through(self, view: View) -> tuple[Tensor, Tensor | None]:
        """Keys and query of whole photos, the keys sampled at the positions of the main images."""
        if self.cache is None:
            keys, query = self._unit(*self.see(view.images, view.boxes))
        else:
            # One by one, so that an entry does not depend on the rest of the batch.
            found = [self._kept(image[None], box[None]) for image, box in zip(view.images, view.boxes)]
            keys = torch.cat([k for k, _ in found])
            queries = [q for _, q in found if q is not None]
            query = torch.cat(queries) if queries else None
        # −1 and 1 are the corner pixels' centres in ``affine``, but the image's edges here: a cell covers many pixels.
        side = view.images.shape[-1]
        with torch.autocast(keys.device.type, enabled=False):
            to_view = torch.linalg.inv(view.affine[:, :, :2])
            shift = to_view @ view.affine[:, :, 2:] * ((side - 1) / side)
            grid = F.affine_grid(torch.cat([to_view, -shift], 2), list(keys.shape), align_corners=False)
            keys = F.grid_sample(keys, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return keys, query

    def _kept(self, image: Tensor, box: Tensor) -> tuple[Tensor, Tensor | None]:
        """``_unit(see(image, box))`` in half precision, from the cache if it is there; image (1,3,H,W)."""
        assert self.cache is not None
        self.build(image.device)
        with self._precision(image.device):
            autocast = torch.is_autocast_enabled(image.device.type)
            precision = str(torch.get_autocast_dtype(image.device.type) if autocast else image.dtype)
        key = content_key(self._identity, precision, box, (image * 255).round().byte())
        entry = self.cache.get(key)
        if entry is None:
            keys, query = self._unit(*self.see(image, box))
            entry = {"keys": keys.half().cpu().contiguous()}
            if query is not None:
                entry["query"] = query.half().cpu().contiguous()
            self.cache.put(key, entry)
        keys, query = entry["keys"], entry.get("query")
        return keys.to(image.device).float(), None if query is None else query.to(image.device).float()

    @staticmethod
    def _unit(keys: Tensor, query: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normalised to length 1, so that half precision cannot overflow; only directions matter."""
        return F.normalize(keys, dim=1), None if query is None else F.normalize(query, dim=1)

    def see(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys (B,D,h,w) and the class token's query (B,D) over all scales; images, boxes as in ``__call__``."""
        encoder = self.build(images.device)
        height, width = images.shape[-2:]
        patch = encoder.patch if isinstance(encoder, TimmViT) else 1
        looks = []
        for scale in self.config.scales:
            size = tuple(max(1, round(n * scale / patch)) * patch for n in (height, width))
            scaled = images if size == (height, width) else F.interpolate(images, size=size, mode="bilinear")
            with self._precision(images.device):
                looks.append(self._look(encoder, scaled, boxes, (height, width)))
        keys, query = looks[0]
        for more_keys, more_query in looks[1:]:
            keys = keys + F.interpolate(more_keys, size=keys.shape[-2:], mode="bilinear")
            query = None if query is None or more_query is None else query + more_query
        return keys, query

    def _look(
        self, encoder: Encoder, images: Tensor, boxes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Keys (B,D,h,w) and the class token's query (B,D) at one scale, float32; boxes in pixels of ``size``."""
        if not isinstance(encoder, TimmViT):
            maps = encoder(images).maps[-1].float()
            return _standardize(maps, inside(boxes, size, maps.shape[-2:])), None
        queries, keys = encoder.queries_keys(images, self.config.block)  # (B,heads,N,d) each
        patches = keys[:, :, encoder.model.num_prefix_tokens :].float().transpose(2, 3).flatten(1, 2)
        return patches.unflatten(2, (images.shape[-2] // encoder.patch, -1)), queries[:, :, 0].float().flatten(1)

    def _precision(self, device: torch.device) -> AbstractContextManager:
        if self.config.precision == "train":
            return nullcontext()
        dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        return torch.autocast(device.type, dtype=dtype, enabled=self.config.precision == "half")


def _shuffle(keys: Tensor, valid: Tensor, drawn: Tensor) -> Tensor:
    """Keys (B,D,h,w) in the order of numbers (B,h·w) in [0,1); positions of the photo and of padding do not mix."""
    places = valid.flatten(1)
    source = (drawn - places.float()).argsort(1)  # the photo's positions first, in random order
    target = places.int().argsort(dim=1, descending=True, stable=True)  # the photo's positions first, in reading order
    index = torch.empty_like(source).scatter_(1, target, source)
    return keys.flatten(2).gather(2, index[:, None].expand(-1, keys.shape[1], -1)).view_as(keys)


def _standardize(maps: Tensor, valid: Tensor) -> Tensor:
    """Maps (B,D,h,w) with mean 0 and variance 1 over each channel's valid positions (B,h,w)."""
    weights = valid[:, None] / valid.sum((1, 2)).clamp(min=1)[:, None, None, None]
    centred = maps - (maps * weights).sum((2, 3), keepdim=True)
    return centred / ((centred.square() * weights).sum((2, 3), keepdim=True) + 1e-5).sqrt()
