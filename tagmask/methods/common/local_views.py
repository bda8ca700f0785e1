"""Local views around objects, cut once labels say where those are."""

from __future__ import annotations

import torch
from torch import Tensor

from tagmask.config import ViewConfig
from tagmask.data.views import local_crop, local_starts
from tagmask.tensors import inside
from tagmask.types import IGNORE, Batch, View


@torch.no_grad()
def object_views(batch: Batch, labels: Tensor, views: ViewConfig) -> View:
    """``views.local.count`` square crops of each main image as it was augmented, around pixels of objects.

    As ECA (DINO is Also a Semantic Guider, ACM MM 2024, section 3.3) makes its local views from the global one: the
    centre is a pixel drawn from those labelled 1..C, each as likely as any other, or of the photo where none is; the
    crop keeps to the photo as one of the loader does, and is flipped and re-augmented like that. labels: (B,H,W) of
    the main images. Random numbers come from ``batch.draw``.
    """
    size, side = views.local.size, batch.images.shape[-1]
    objects = ((labels > 0) & (labels != IGNORE)).flatten(1)
    photo = inside(batch.boxes, (labels.shape[-2], labels.shape[-1])).flatten(1)
    pixels = torch.where(objects.any(1, keepdim=True), objects, photo).cumsum(1)
    # Of n pixels the one with so many up to it as a number drawn from 1, …, n.
    drawn = batch.draw(torch.rand, views.local.count + 1)
    chosen = (drawn[:, 1:] * pixels[:, -1:]).long().minimum(pixels[:, -1:] - 1).clamp(min=0) + 1
    centres = torch.searchsorted(pixels, chosen).clamp(max=pixels.shape[1] - 1).tolist()
    crops = []
    for canvas, box, places, start_of in zip(batch.images, batch.boxes.tolist(), centres, drawn[:, 0].tolist()):
        # Colours are drawn one number at a time, which a generator on a GPU would wait for.
        generator = torch.Generator().manual_seed(int(start_of * 2**24))
        for place in places:
            start = []
            for axis, at in enumerate((place % side, place // side)):
                first, last = local_starts(box[axis], box[axis + 2], size, side)
                start.append(min(max(at - size // 2, first), last))
            crops.append(local_crop(canvas, box, start, size, views.flip, generator))
    parts = [torch.stack(part).unflatten(0, (-1, views.local.count)).to(batch.images.device) for part in zip(*crops)]
    return View(*parts)
