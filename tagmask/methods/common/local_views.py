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
    the main images. Random numbers come from ``batch.generator``.
    """
    size, side = views.local.size, batch.images.shape[-1]
    objects = ((labels > 0) & (labels != IGNORE)).flatten(1)
    photo = inside(batch.boxes, (labels.shape[-2], labels.shape[-1])).flatten(1)
    weights = torch.where(objects.any(1, keepdim=True), objects, photo).float().to(batch.generator.device)
    centres = weights.multinomial(views.local.count, replacement=True, generator=batch.generator).tolist()
    # Colours are drawn one number at a time, which a generator on a GPU would wait for.
    drawn = torch.randint(2**62, (), generator=batch.generator, device=batch.generator.device)
    generator = torch.Generator().manual_seed(int(drawn))
    crops = []
    for canvas, box, places in zip(batch.images, batch.boxes.tolist(), centres):
        for place in places:
            start = []
            for axis, at in enumerate((place % side, place // side)):
                first, last = local_starts(box[axis], box[axis + 2], size, side)
                start.append(min(max(at - size // 2, first), last))
            crops.append(local_crop(canvas, box, start, size, views.flip, generator))
    parts = [torch.stack(part).unflatten(0, (-1, views.local.count)).to(batch.images.device) for part in zip(*crops)]
    return View(*parts)
