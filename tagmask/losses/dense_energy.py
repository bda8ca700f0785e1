"""Dense energy: neighbouring pixels of similar colour should have one class."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask.errors import TagmaskError
from tagmask.refine.lattice import PermutohedralLattice, positions
from tagmask.refine.neighbours import check_values
from tagmask.tensors import check_shapes, inside
from tagmask.types import IGNORE


class DenseEnergy(nn.Module):
    """Colour-based regulariser of segmentation probabilities S, gated by their confidence.

    Tang et al., On Regularized Losses for Weakly-supervised CNN Segmentation, ECCV 2018, in the gated form of the
    single-stage methods (AFA, TSCD, ToCo):

        −weight / B · Σ S · gate · (K S),   gate = max(ROI − max_k S, 0), and 1 where the label is 255,

    with S set to 0 outside the region of interest ROI (the boxes). K is the Gaussian kernel over RGB / sigma_rgb and
    (x,y) / (sigma_xy · scale), including a pixel itself, approximated by the permutohedral lattice and *not*
    normalised. On photos the lattice gives 0.5 to 0.6 of the exact Gaussian sum; the published weight 1e-7 was chosen
    with it. The gate gets no gradient.

    sigma_rgb: in colours of 0..255. sigma_xy: in pixels of the images. scale: of the grid that is computed on; images,
    boxes and labels are resized to it by nearest neighbour, probabilities bilinearly. gradient: 'exact' differentiates
    the formula; 'release' takes −2 · weight / B · gate · (K S), as the released codes do, so that confident pixels
    (gate 0) get no gradient.

    Call: images float (B,3,H,W) in [0,1]; probs (B,K,h,w), softmax over K; boxes long (B,4), valid pixels
    (x0,y0,x1,y1) of the images; labels integers (B,H,W) or None → scalar ≤ 0, float32 (float64 for such probs),
    differentiable in probs. Raises TagmaskError for shapes that do not fit, NaN or infinite values, and colours
    outside of [0,1].
    """

    def __init__(
        self,
        weight: float = 1e-7,
        sigma_rgb: float = 15.0,
        sigma_xy: float = 100.0,
        scale: float = 0.5,
        gradient: Literal["exact", "release"] = "exact",
    ) -> None:
        super().__init__()
        if min(sigma_rgb, sigma_xy, scale) <= 0:
            raise TagmaskError("DenseEnergy: sigma_rgb, sigma_xy and scale must be above 0.")
        if gradient not in ("exact", "release"):
            raise TagmaskError(f"DenseEnergy: gradient is 'exact' or 'release', not '{gradient}'.")
        self.weight = weight
        self.sigma_rgb = sigma_rgb
        self.sigma_xy = sigma_xy
        self.scale = scale
        self.gradient = gradient

    def forward(self, images: Tensor, probs: Tensor, boxes: Tensor, labels: Tensor | None = None) -> Tensor:
        wanted = "images (B,3,H,W), probabilities (B,K,h,w), boxes (B,4) and labels (B,H,W)"
        check_shapes("DenseEnergy", wanted, images, probs, boxes, labels)
        check_values("DenseEnergy", images, "probabilities", probs)
        with torch.autocast(images.device.type, enabled=False):
            return self._energy(images, probs, boxes, labels)

    def _energy(self, images: Tensor, probs: Tensor, boxes: Tensor, labels: Tensor | None) -> Tensor:
        height, width = (max(1, int(n * self.scale)) for n in images.shape[-2:])
        dtype = torch.float64 if probs.dtype == torch.float64 else torch.float32
        colours = F.interpolate(images.detach().to(dtype), size=(height, width), mode="nearest") * 255
        region = inside(boxes.to(images.device), (images.shape[-2], images.shape[-1]))[:, None]
        region = F.interpolate(region.to(dtype), size=(height, width), mode="nearest")
        probs = F.interpolate(probs.to(dtype), size=(height, width), mode="bilinear", align_corners=False) * region
        gate = (region - probs.detach().amax(1, keepdim=True)).clamp(min=0)
        if labels is not None:
            unknown = F.interpolate((labels == IGNORE)[:, None].to(dtype), size=(height, width), mode="nearest")
            gate = torch.where(unknown > 0, 1.0, gate)
        count = len(images)
        place = positions(height, width, images.device).to(dtype) / (self.sigma_xy * self.scale)
        colours = colours.flatten(2).transpose(1, 2) / self.sigma_rgb
        lattice = PermutohedralLattice(torch.cat([place.expand(count, -1, -1), colours], 2))
        flat, gate = probs.flatten(2), gate.flatten(2)
        if self.gradient == "release":
            with torch.no_grad():
                filtered = gate * lattice.filter(flat)
            energy = (flat * filtered).sum()
            energy = 2 * energy - energy.detach()  # keeps the value, doubles the gradient
        else:
            energy = (flat * gate * lattice.filter(flat)).sum()
        return -self.weight / max(1, count) * energy
