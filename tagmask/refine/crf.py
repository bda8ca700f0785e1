"""Dense conditional random field: mean field inference on the permutohedral lattice."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from tagmask.errors import ConfigError, TagmaskError, nearest
from tagmask.refine.lattice import PermutohedralLattice, lanes, positions
from tagmask.refine.threads import each_image
from tagmask.tensors import check_shapes
from tagmask.types import IGNORE

CLIP = 1e-5
"""Lower bound of probabilities, so that no label is impossible."""

SETTINGS = ("iterations", "gaussian_weight", "gaussian_sxy", "bilateral_weight", "bilateral_sxy", "bilateral_srgb")

PRESETS = {
    "afa": (10, 3.0, 3.0, 4.0, 64.0, 5.0),
    "toco": (10, 1.0, 1.0, 4.0, 121.0, 5.0),
    "cosa": (1, 1.0, 1.0, 4.0, 121.0, 5.0),
    "psa": (10, 3.0, 3.0, 10.0, 80.0, 13.0),
    "irn": (10, 3.0, 3.0, 10.0, 50.0, 5.0),
    "deeplab": (10, 3.0, 1.0, 4.0, 67.0, 3.0),
}
"""Published values of ``SETTINGS``. ``irn`` is used on hard labels: see ``label_probabilities``, confidence 0.7."""


class DenseCRF(nn.Module):
    """Fully connected CRF with a Gaussian and a bilateral kernel and Potts labels, by mean field iterations.

    Krähenbühl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NIPS 2011. Each
    iteration replaces the probabilities Q of a pixel by

        softmax(log p + gaussian_weight · (K_xy Q) + bilateral_weight · (K_xyrgb Q)),

    K = D^-½ exp(−½ |f_i − f_j|²) D^-½, where D holds the row sums, including the pixel itself. f is (x, y) /
    gaussian_sxy, or (x, y) / bilateral_sxy with RGB / bilateral_srgb. K is approximated by the permutohedral lattice,
    as in the paper.

    gaussian_sxy, bilateral_sxy: standard deviations in pixels. bilateral_srgb: in colours of 0..255. A weight of 0
    leaves its kernel out.

    On a CPU each thread keeps up to 201 MB of working memory for the next call. All instances share the spatial kernels
    of the last eight image sizes, at most some 50 bytes a pixel each. Results of different numbers of threads differ in
    their last digits.

    Call: images uint8 (B,3,H,W) RGB; probs (B,K,H,W), clipped to 1e-5..1 → (B,K,H,W) float32 that sum to 1 over K.
    On a CPU images are processed in parallel, one a thread. Without gradient.

    Raises TagmaskError for images that are not uint8, shapes that do not fit, and probabilities that are negative,
    above 1, NaN or infinite.

    Examples:
        >>> crf = DenseCRF.preset("afa")
        >>> crf(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 2, 8, 8), 0.5)).shape
        torch.Size([1, 2, 8, 8])
    """

    def __init__(
        self,
        iterations: int = 10,
        gaussian_weight: float = 3.0,
        gaussian_sxy: float = 3.0,
        bilateral_weight: float = 4.0,
        bilateral_sxy: float = 64.0,
        bilateral_srgb: float = 5.0,
    ) -> None:
        super().__init__()
        if iterations < 0 or min(gaussian_sxy, bilateral_sxy, bilateral_srgb) <= 0:
            raise TagmaskError("DenseCRF: iterations are 0 or more, standard deviations above 0.")
        self.iterations = int(iterations)
        self.gaussian_weight = gaussian_weight
        self.gaussian_sxy = gaussian_sxy
        self.bilateral_weight = bilateral_weight
        self.bilateral_sxy = bilateral_sxy
        self.bilateral_srgb = bilateral_srgb

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DenseCRF:
        """The published settings called ``name``: a key of ``PRESETS``. Raises ConfigError on another name."""
        if name not in PRESETS:
            raise ConfigError(f"There is no dense CRF preset '{name}'.{nearest(name, list(PRESETS))}")
        settings: dict[str, Any] = {**dict(zip(SETTINGS, PRESETS[name])), **changes}
        return cls(**settings)

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, images: Tensor, probs: Tensor) -> Tensor:
        self._check(images, probs)
        count, channels, height, width = probs.shape
        result = torch.empty(probs.shape, dtype=torch.float32, device=probs.device)
        if result.numel() == 0:
            return result
        position = positions(height, width, images.device)
        shared: list[tuple[float, Any]] = []
        if self.gaussian_weight:
            spatial = spatial_kernel(height, width, self.gaussian_sxy, images.device)
            shared.append((self.gaussian_weight, spatial))

        def work(i: int) -> None:
            kernels = list(shared)
            if self.bilateral_weight:
                colours = images[i].flatten(1).T.float() / self.bilateral_srgb
                features = torch.cat([position / self.bilateral_sxy, colours], 1)
                kernels.append((self.bilateral_weight, _lattice(features)))
            result[i] = self._mean_field(probs[i].flatten(1).T, kernels).T.view(channels, height, width)

        each_image(work, count, images.device)
        return result

    def _mean_field(self, probs: Tensor, kernels: list[tuple[float, Any]]) -> Tensor:
        """(N,K) probabilities → (N,K)."""
        count, channels = probs.shape
        # Columns that only pad have probability 0.
        unary = torch.full((count, lanes(channels, probs.device)), -torch.inf, device=probs.device)
        unary[:, :channels] = probs.float().clamp(min=CLIP).log()
        current, logits = unary.softmax(1), torch.empty_like(unary)
        for _ in range(self.iterations):
            logits.copy_(unary)
            for weight, kernel in kernels:
                kernel.add_rows(current, logits, weight)
            torch.softmax(logits, 1, out=current)
        return current[:, :channels]

    def _check(self, images: Tensor, probs: Tensor) -> None:
        check_shapes("DenseCRF", "images (B,3,H,W) and probabilities (B,K,H,W)", images, probs)
        if images.dtype != torch.uint8:
            raise TagmaskError(
                f"DenseCRF takes uint8 images with colours of 0..255, got {images.dtype}; "
                "from [0,1]: (images * 255).round().byte()."
            )
        low, high = (float(x) for x in probs.aminmax()) if probs.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1 + 1e-3):  # NaN fails both
            raise TagmaskError(
                f"DenseCRF takes probabilities in [0,1], got {low:g} to {high:g}; take the softmax first."
            )


@lru_cache(maxsize=8)
def spatial_kernel(height: int, width: int, sxy: float, device: torch.device) -> Any:
    """The normalised kernel of a grid's positions, which depends on the image's size alone."""
    return _lattice(positions(height, width, device) / sxy)


def _lattice(features: Tensor) -> Any:
    """The normalised kernel of one image's features (N,d)."""
    return PermutohedralLattice(features[None]).normalize().images[0]


def label_probabilities(labels: Tensor, num_classes: int, confidence: float) -> Tensor:
    """Probabilities for a CRF on hard labels: ``confidence`` for the label, the rest divided among the other classes.

    labels: integers (B,H,W), 0..num_classes−1; 255 gives the uniform distribution. num_classes counts the
    background. Returns float32 (B,num_classes,H,W). Raises TagmaskError for other labels, fewer than 2 classes, or a
    confidence outside (0,1).
    """
    if num_classes < 2 or not 0 < confidence < 1:
        raise TagmaskError(
            f"label_probabilities: {num_classes} classes (2 or more) and confidence {confidence} (in (0,1)) do not fit."
        )
    check_shapes("label_probabilities", "labels (B,H,W)", labels)
    if labels.is_floating_point():
        raise TagmaskError(f"label_probabilities takes integer labels, got {labels.dtype}.")
    unknown = labels == IGNORE
    known = labels.long().masked_fill(unknown, 0)
    if labels.numel() and not 0 <= int(known.min()) <= int(known.max()) < num_classes:
        raise TagmaskError(f"label_probabilities: the labels hold values beyond the {num_classes} classes.")
    shape = (len(labels), num_classes, *labels.shape[1:])
    probs = torch.full(shape, (1 - confidence) / (num_classes - 1), device=labels.device)
    probs.scatter_(1, known[:, None], confidence)
    return torch.where(unknown[:, None], 1 / num_classes, probs)
