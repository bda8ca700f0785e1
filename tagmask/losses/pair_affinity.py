"""Affinity of pairs of positions: their labels, and the loss of AffinityNet and IRN."""

from __future__ import annotations

import torch
from torch import Tensor

from tagmask import comm
from tagmask.errors import TagmaskError
from tagmask.losses.affinity import check_labels
from tagmask.tensors import check_shapes, full
from tagmask.types import IGNORE

NEGATIVE, BACKGROUND, FOREGROUND = 0, 1, 2
"""Kinds of a pair: different classes, both background, one foreground class. ``IGNORE``: not counted."""

EPSILON = 1e-5
"""Added inside the logarithms, which would be infinite at an affinity of exactly 0 or 1."""


def pair_labels(labels: Tensor, edges: Tensor) -> Tensor:
    """The kind of each pair of positions: 2 same foreground class, 1 both background, 0 different, 255 ignored.

    The sets P⁺_fg, P⁺_bg and P⁻ of AffinityNet (Ahn and Kwak, Learning Pixel-level Semantic Affinity with Image-level
    Supervision, CVPR 2018, equations 4 and 5), which IRN (Ahn, Cho and Kwak, Weakly Supervised Learning of Instance
    Segmentation with Inter-pixel Relations, CVPR 2019) shares. A pair with an ignored end is ignored.

    labels: integers (B,h,w), 0 background, 1..C, 255 ignored, on the grid of the affinity (``downsample_labels``).
    edges: integers (2,E), flat positions y·w + x. Returns uint8 (B,E). Raises TagmaskError when shapes do not fit.

    Examples:
        >>> pair_labels(torch.tensor([[[0, 0, 3, 3, 255]]]), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))
        tensor([[  1,   0,   2, 255]], dtype=torch.uint8)
    """
    check_labels("Pair labels", labels)
    check_shapes("Pair labels", "edges (2,E)", edges)
    flat = labels.flatten(1).to(torch.uint8)  # one byte a pair: a batch of IRN has tens of millions
    first, second = flat[:, edges[0]], flat[:, edges[1]]
    kinds = torch.full_like(first, FOREGROUND).masked_fill_(first == 0, BACKGROUND)
    kinds.masked_fill_(first != second, NEGATIVE)
    return kinds.masked_fill_((first == IGNORE) | (second == IGNORE), IGNORE)


def pair_affinity_loss(affinity: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of affinities, one term a kind of pair. AffinityNet, equations 6 to 8; IRN, equation 6.

        fg  = −1/|P⁺_fg| Σ log(a + ε)      bg = −1/|P⁺_bg| Σ log(a + ε)      neg = −1/|P⁻| Σ log(1 − a + ε)

    The papers' loss is fg + bg + 2·neg (AffinityNet, equation 9) and half of it (IRN): ``weighted`` takes ¼, ¼, ½.
    ε = 1e-5. A kind without pairs costs 0.

    affinity: floating point, any shape, in [0,1]. kinds: uint8 of the same shape, as ``pair_labels`` gives them; means
    go over all entries of the whole batch (``comm.share``). Returns scalars 'fg', 'bg', 'neg'. Raises TagmaskError when
    shapes differ.
    """
    if affinity.shape != kinds.shape:
        raise TagmaskError(f"Affinities {tuple(affinity.shape)} and kinds of pairs {tuple(kinds.shape)} do not fit.")
    affinity = full(affinity)
    known = kinds != IGNORE
    affinity, kinds = affinity[known], kinds[known]
    attract, repel = -(affinity + EPSILON).log(), -(1 - affinity + EPSILON).log()
    chosen = {
        "fg": (kinds == FOREGROUND, attract),
        "bg": (kinds == BACKGROUND, attract),
        "neg": (kinds == NEGATIVE, repel),
    }
    pairs = comm.share(torch.stack([where.sum() for where, _ in chosen.values()]))
    return {name: torch.where(*of, 0).sum() / n for (name, of), n in zip(chosen.items(), pairs)}


def weighted(terms: dict[str, Tensor]) -> Tensor:
    """¼·fg + ¼·bg + ½·neg of ``pair_affinity_loss``: attraction and repulsion have equal weight."""
    return 0.25 * terms["fg"] + 0.25 * terms["bg"] + 0.5 * terms["neg"]
