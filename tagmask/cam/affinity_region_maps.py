"""Class-aware affinity region maps (CARM): seeds of a class, propagated to similar positions.

DINO is Also a Semantic Guider: Exploiting Class-aware Affinity for Weakly Supervised Semantic Segmentation, ACM MM
2024, section 3.2: seeds, maps, calibration, labels. Nothing here has a gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask import comm
from tagmask.cam.labels import Refine
from tagmask.cam.maps import normalize
from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, inside, resize
from tagmask.types import IGNORE

CHUNK = 512
"""Rows of an affinity graph computed at once."""

Cue = Literal["minmax", "binary", "none"]


@torch.no_grad()
def cam_seeds(
    cams: Tensor,
    tags: Tensor,
    top: float,
    background: float | None = None,
    most: int | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Seeds: the most confident positions of the background and of each tagged class (equations 2 and 3).

    The background's map is 1 − the maximum over the tagged classes. Each position belongs to the class, background
    included, with the largest value there (ties: background, then the lower class). Of its n positions with a value
    above 0 a class keeps the max(1, round(top · n)) largest (ties: in reading order); with n = 0 it has no seeds.

    cams: (B,C,h,w) in [0,1]. tags: (B,C) of 0/1. top: in (0,1]. background: a fixed background score that decides
    which class a position belongs to; the background's seeds are still ranked by 1 − max. most: largest number of
    seeds of a class. valid: bool (B,h,w), positions of the photo, without padding.
    Returns bool (B,C+1,h,w), background first. Raises TagmaskError when shapes or ``top`` do not fit.
    """
    check_shapes("CAM seeds", "CAMs (B,C,h,w), tags (B,C) and valid (B,h,w)", cams, tags, valid)
    if not 0 < top <= 1:
        raise TagmaskError(f"Seeds: the share of positions that are kept is above 0 and at most 1, got {top}.")
    valid = _positions(valid, cams)
    # Image by image: sorting takes 8 bytes a value, too much for all classes of a batch at once.
    return torch.stack([_seeds(c, t, top, background, most, v) for c, t, v in zip(cams, tags, valid)])


def _seeds(cams: Tensor, tags: Tensor, top: float, background: float | None, most: int | None, valid: Tensor) -> Tensor:
    """``cam_seeds`` of one image: cams (C,h,w), tags (C,), valid (h,w)."""
    foreground = cams.float() * (tags > 0)[:, None, None]
    rest = 1 - foreground.amax(0, keepdim=True)
    maps = torch.cat([rest, foreground])
    rival = rest if background is None else torch.full_like(rest, background)
    owner = torch.cat([rival, foreground]).max(0, keepdim=True).indices
    classes = torch.arange(len(maps), device=maps.device)[:, None, None]
    values = (maps * ((owner == classes) & valid)).flatten(1)
    found = (values > 0).sum(1)
    kept = (found.double() * top).round().long().clamp(min=1).minimum(found)
    if most is not None:
        kept = kept.clamp(max=most)
    order = values.sort(dim=1, descending=True, stable=True).indices
    first = torch.arange(values.shape[1], device=maps.device) < kept[:, None]
    return torch.zeros_like(first).scatter(1, order, first).view(maps.shape)


@torch.no_grad()
def affinity_region_maps(
    keys: Tensor,
    query: Tensor | None,
    seeds: Tensor,
    gamma: float = 0.15,
    cue: Cue = "minmax",
    cut: float = -0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """How many seeds of a class each position is connected to, min-max normalised (equations 4 to 7).

    Two positions are connected if the cosine of their keys is above ``gamma``. Counts of foreground classes are
    multiplied by the foreground cue, the cosine of the class token's query and the position's key. ``minmax``
    rescales the cue to [0,1] in each image: a negative cue would rank connected positions below unconnected ones.
    ``binary`` makes it 1 above ``cut`` and 0 elsewhere. ``none`` leaves it out.

    keys: (B,D,h,w), heads concatenated. query: (B,D), None without cue. seeds: bool (B,C+1,h,w), background first.
    valid: bool (B,h,w); other positions are 0 and do not count in any minimum or maximum.
    Returns float32 (B,C+1,h,w) in [0,1); a constant map, such as that of a class without seeds, becomes 0.

    Memory: only the seeds' rows of the affinity graph are computed, 512 at a time, image by image. For N = h·w
    positions that is 4·N·D bytes for the unit keys of an image, 4.6 kB·N for the rows and 4·B·(C+1)·N for the result:
    28 MB for 8 images of 512 pixels with 20 classes and patches of 8 (N = 4096, D = 384), 36 MB with 80 classes; the
    whole graphs would take 537 MB. Raises TagmaskError when shapes do not fit or the cue lacks a query.
    """
    wanted = "keys (B,D,h,w), query (B,D), seeds (B,K,h,w) and valid (B,h,w)"
    check_shapes("affinity_region_maps", wanted, keys, query, seeds, valid)
    if cue not in ("minmax", "binary", "none"):
        raise TagmaskError(f"Affinity region maps: the cue is 'minmax', 'binary' or 'none', got '{cue}'.")
    if cue != "none" and query is None:
        raise TagmaskError(f"Affinity region maps: cue '{cue}' needs a query (B,D).")
    valid = _positions(valid, keys)
    maps = torch.zeros(seeds.shape, device=keys.device)
    with torch.autocast(keys.device.type, enabled=False):
        # Cue and min-max go image by image, too: over a batch they would copy all its keys and maps.
        for b in range(len(keys)):
            unit = F.normalize(keys[b].float().flatten(1), dim=0, eps=1e-8)
            classes, positions = seeds[b].flatten(1).nonzero(as_tuple=True)
            for start in range(0, len(positions), CHUNK):
                rows = slice(start, start + CHUNK)
                connected = unit[:, positions[rows]].T @ unit > gamma
                maps[b].flatten(1).index_add_(0, classes[rows], connected.float())
            if cue != "none":
                assert query is not None
                similarity = (F.normalize(query[b].float(), dim=0, eps=1e-8) @ unit).view(1, *maps.shape[-2:])
                maps[b, 1:] *= (similarity > cut).float() if cue == "binary" else _min_max(similarity, valid[b])
            maps[b] = _min_max(maps[b], valid[b])
    return maps


def region_labels(
    maps: Tensor,
    tags: Tensor,
    images: Tensor,
    refine: Refine | None = None,
    boxes: Tensor | None = None,
) -> Tensor:
    """Labels of region maps: the argmax over the background and the tagged classes.

    There is no threshold, since the background has its own map. ``refine`` refines the maps at half the images'
    resolution (rounded down, at least 1) before the argmax, as for CAMs.

    maps: (B,C+1,h,w) ≥ 0, background first. tags: (B,C) of 0/1. images: (B,3,H,W) RGB in [0,1]. boxes: long (B,4),
    (x0,y0,x1,y1), half-open; pixels outside are 255. Returns long (B,H,W): 0, 1..C, 255 (ties: background, then the
    lower class). Raises TagmaskError when shapes do not fit.
    """
    wanted = "maps (B,C+1,h,w), background first, tags (B,C) and images (B,3,H,W)"
    check_shapes("region_labels", wanted, maps, tags, images)
    height, width = images.shape[-2:]
    size = (height, width) if refine is None else (max(1, height // 2), max(1, width // 2))
    with torch.no_grad():
        shown = torch.cat([torch.ones_like(tags[:, :1]), tags], 1) > 0
        # Background and tagged classes only: refinement costs the same for each map.
        channels = shown.int().argsort(dim=1, descending=True, stable=True)[:, : int(shown.sum(1).max())]
        scores = resize((maps.float() * shown[:, :, None, None]), size)
        scores = scores.gather(1, channels[:, :, None, None].expand(-1, -1, *size))
        if refine is not None:
            scores = resize(refine(resize(images, size), scores), (height, width))
        # Images with fewer tags than others carry absent classes of value 0. A refinement's weights may be negative,
        # so absent classes must be excluded, not just small.
        scores = scores.masked_fill(~shown.gather(1, channels)[:, :, None, None], float("-inf"))
        best = scores.max(1).indices
        labels = channels.gather(1, best.flatten(1)).view_as(best)
        return labels if boxes is None else labels.masked_fill(~inside(boxes, (height, width)), IGNORE)


class PrototypeCalibration(nn.Module):
    """Class prototypes (running mean tokens), and maps weighted by similarity to them (equations 8 to 10).

    classes: C. channels: D, of the student's tokens. momentum: τ, in [0,1). exponent: of the similarity, above 0.
    rescale: rescale the similarity to [0,1] by min-max in each image instead of clamping it at 0. least_classes:
    images with fewer tagged classes are not calibrated. The background has no prototype. A class's prototype starts
    as the mean of its first seeds; until then its map is not calibrated.

    Buffers: ``prototypes`` (C,D) and ``seen`` (C,).
    """

    prototypes: Tensor
    seen: Tensor

    def __init__(
        self,
        classes: int,
        channels: int,
        momentum: float = 0.99,
        exponent: float = 2.0,
        rescale: bool = False,
        least_classes: int = 1,
    ) -> None:
        super().__init__()
        self.momentum, self.exponent = momentum, exponent
        self.rescale, self.least_classes = rescale, least_classes
        self.register_buffer("prototypes", torch.zeros(classes, channels))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, tokens: Tensor, seeds: Tensor) -> None:
        """Update the prototypes by the mean token of a class's seeds in an image, averaged over images.

        tokens: (B,D,h,w) and seeds: bool (B,C,h,w), without background, on one grid. The average includes the images
        of all processes, so all of them must call this together. Classes without seeds keep their prototype. Raises
        TagmaskError when shapes do not fit.
        """
        classes, channels = self.prototypes.shape
        check_shapes("Calibration", f"tokens (B,{channels},h,w) and seeds (B,{classes},h,w)", tokens, seeds)
        with torch.autocast(tokens.device.type, enabled=False):
            masks = seeds.flatten(2).float()
            sums = masks @ tokens.float().flatten(2).mT
            means = sums / masks.sum(2, keepdim=True).clamp(min=1)
            images = comm.all_sum(seeds.flatten(2).any(2).float().sum(0))
            fresh = comm.all_sum(means.sum(0)) / images.clamp(min=1)[:, None]
        here = images > 0
        blended = self.momentum * self.prototypes + (1 - self.momentum) * fresh
        new = torch.where(self.seen[:, None], blended, fresh)
        self.prototypes.copy_(torch.where(here[:, None], new, self.prototypes))
        self.seen |= here

    @torch.no_grad()
    def forward(self, maps: Tensor, tokens: Tensor, tags: Tensor, valid: Tensor | None = None) -> Tensor:
        """Calibrated maps (B,C,h,w) in [0,1): min-max of map · similarity^exponent, for classes with a prototype.

        maps: (B,C,h,w) without background. tokens: (B,D,h,w) on the same grid. tags: (B,C) of 0/1. valid: bool (B,h,w).
        Raises TagmaskError when shapes do not fit.
        """
        classes, channels = self.prototypes.shape
        wanted = f"tokens (B,{channels},h,w), maps (B,{classes},h,w), tags (B,{classes}) and valid (B,h,w)"
        check_shapes("Calibration", wanted, tokens, maps, tags, valid)
        valid = _positions(valid, maps)
        result = maps.clone()
        with torch.autocast(tokens.device.type, enabled=False):
            prototypes = F.normalize(self.prototypes, dim=1, eps=1e-8)
            for b in range(len(maps)):
                norms = tokens[b].float().flatten(1).norm(dim=0).clamp(min=1e-8)
                similarity = (prototypes @ tokens[b].float().flatten(1) / norms).view_as(maps[b])
                similarity = _min_max(similarity, valid[b]) if self.rescale else similarity.clamp(min=0)
                calibrated = _min_max(maps[b] * similarity.pow(self.exponent), valid[b])
                counts = self.seen & ((tags[b] > 0).sum() >= self.least_classes)
                result[b] = torch.where(counts[:, None, None], calibrated, maps[b])
        return result


def _min_max(maps: Tensor, valid: Tensor) -> Tensor:
    """Maps (K,h,w) of one image to [0,1) over its valid positions (h,w), 0 elsewhere."""
    lowest = maps.masked_fill(~valid, float("inf")).amin((-2, -1), keepdim=True)
    lowest = lowest.masked_fill(lowest.isinf(), 0)  # nothing is valid
    return normalize(torch.where(valid, maps, lowest))


def _positions(valid: Tensor | None, maps: Tensor) -> Tensor:
    """bool (B,h,w): ``valid``, or all positions of maps (B,K,h,w)."""
    return torch.ones_like(maps[:, 0], dtype=torch.bool) if valid is None else valid.bool()
