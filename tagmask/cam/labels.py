"""From class activation maps and tags to label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, inside, resize
from tagmask.types import IGNORE

Refine = Callable[[Tensor, Tensor], Tensor]
"""(images (B,3,H,W) in [0,1], maps (B,K,h,w)) → (B,K,H,W), as the modules of ``tagmask.refine``."""


def cam_labels(cams: Tensor, tags: Tensor, threshold: float) -> Tensor:
    """The tagged class with the largest CAM where it exceeds ``threshold``, background elsewhere.

    cams: (B,C,H,W) in [0,1]. tags: (B,C) of 0/1. Returns long (B,H,W): 0, or 1..C. A CAM equal to the threshold is
    background; of equal classes the lower one wins.
    """
    return pseudo_labels(cams, tags, threshold, threshold)


@torch.no_grad()
def pseudo_labels(
    cams: Tensor,
    tags: Tensor,
    high: float,
    low: float,
    refine: Refine | None = None,
    images: Tensor | None = None,
    boxes: Tensor | None = None,
    factor: Tensor | None = None,
) -> Tensor:
    """Labels to train a segmenter on: confident foreground, confident background, and 255 for the rest.

    The two-threshold rule of AFA (CVPR 2022, section 3.3). A background score, ``high`` or ``low``, gives a label map:
    the argmax over it and the scores of the tagged classes (ties: background, then the lower class). A pixel that
    ``high`` makes foreground gets that class; a pixel that ``low`` makes background gets 0; all others get 255, none
    if high = low. Scores are the CAMs, or with ``refine`` the ``refined_scores``.

    cams: (B,C,h,w) in [0,1]. tags: (B,C) of 0/1. images: (B,3,H,W) RGB in [0,1], needed by ``refine``.
    boxes: long (B,4), (x0,y0,x1,y1), half-open, in pixels of the result; pixels outside are 255.
    factor: (B,1,H',W') >= 0 that both background scores are multiplied by, resized to the maps' grid; default: 1.
    Returns long (B,H,W) of the images' size, or of the CAMs' without images. Raises TagmaskError when shapes do not
    fit, if high < low, and for ``refine`` without images.
    """
    if high < low:
        raise TagmaskError(f"Pseudo labels: high ({high}) is below low ({low}); high is the stricter threshold.")
    size = (images if images is not None else cams).shape[-2:]
    if refine is None:
        check_shapes("pseudo_labels", "CAMs (B,C,h,w), tags (B,C) and images (B,3,H,W)", cams, tags, images)
        best, label = resize(cams.masked_fill(tags[:, :, None, None] <= 0, -1), size).max(1)
        grid = 1 if factor is None else resize(factor, size)[:, 0]
        sure, background = best > high * grid, best <= low * grid
        label = label + 1
    else:
        thresholds = (high,) if high == low else (high, low)
        scores, classes = _refined_stacks(cams, tags, thresholds, refine, images, True, factor)
        # max finds the same index as argmax, the first of equals, about ten times faster over strided channels.
        found = [resize(scores[:, t], size).max(1).indices for t in range(len(thresholds))]
        sure, background = found[0] > 0, found[-1] == 0
        label = classes.gather(1, found[0].flatten(1)).view_as(found[0])
    unsure = torch.full_like(label, IGNORE)
    labels = torch.where(sure, label, torch.where(background, torch.zeros_like(label), unsure))
    return labels if boxes is None else torch.where(inside(boxes, size), labels, unsure)


@torch.no_grad()
def refined_scores(
    cams: Tensor,
    tags: Tensor,
    threshold: float,
    refine: Refine,
    images: Tensor,
    half: bool = True,
    factor: Tensor | None = None,
) -> Tensor:
    """Scores of the background and the tagged classes, refined by the images.

    The CAMs are resized to the images' size, halved if ``half`` (rounded down, at least 1). A background
    channel of value ``threshold``, times ``factor``, is prepended, and the softmax over it and the tagged classes is
    refined.

    Shapes as in ``pseudo_labels``. Returns (B,C+1,H',W') on that grid, background first; absent classes are 0. Over
    channels the scores sum to what the refinement's weights do (PAR: 1.10 after ten iterations), not to 1.
    """
    stacks, classes = _refined_stacks(cams, tags, (threshold,), refine, images, half, factor)
    scores = stacks.new_zeros(len(cams), cams.shape[1] + 1, *stacks.shape[-2:])
    index = classes[:, :, None, None].expand_as(stacks[:, 0])
    # In images with fewer tags than others the channels to spare hold 0 and point at absent classes.
    return scores.scatter_(1, index, stacks[:, 0])


def _refined_stacks(
    cams: Tensor,
    tags: Tensor,
    thresholds: Sequence[float],
    refine: Refine,
    images: Tensor | None,
    half: bool,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Refined scores (B,T,P+1,h,w) for T background scores, and the label of each channel, long (B,P+1).

    P is the largest number of tags of an image: only tagged classes are refined.
    """
    if images is None:
        raise TagmaskError("Pseudo labels: refine needs images; pass them, or refine=None.")
    check_shapes("refined_scores", "CAMs (B,C,h,w), tags (B,C) and images (B,3,H,W)", cams, tags, images)
    height, width = images.shape[-2:]
    size = (max(1, height // 2), max(1, width // 2)) if half else (height, width)
    present = tags > 0
    carried = max(1, int(present.sum(1).max()))
    classes = present.int().argsort(dim=1, descending=True, stable=True)[:, :carried]
    absent = ~present.gather(1, classes)
    chosen = cams.gather(1, classes[:, :, None, None].expand(-1, -1, *cams.shape[-2:]))
    chosen = resize(chosen.float(), size).masked_fill(absent[:, :, None, None], float("-inf"))
    background = chosen.new_tensor(thresholds).view(1, -1, 1, 1, 1).expand(len(cams), -1, 1, *size)
    if factor is not None:
        background = background * resize(factor, size)[:, None]
    stacks = torch.cat([background, chosen[:, None].expand(-1, len(thresholds), -1, -1, -1)], 2).softmax(2)
    scores = refine(resize(images, size), stacks.flatten(1, 2)).unflatten(1, stacks.shape[1:3])
    return scores, torch.cat([torch.zeros_like(classes[:, :1]), classes + 1], 1)
