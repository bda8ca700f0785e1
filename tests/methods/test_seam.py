"""``seam``: the contract, its correlation and its losses against loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.methods import build_method
from tagmask.methods.seam import SEAM, pixel_correlation, with_background
from tests.methods.contract import CLASSES, MethodContract, squares, tiny


class TestSEAM(MethodContract):
    settings = {"name": "seam", "rescale": 0.5}
    terms = {
        "cls": {"encoder", "classifier"},
        "er": {"encoder", "classifier"},
        "ecr": {"reduced", "embedding"},
    }


def correlated(embedding: Tensor, maps: Tensor) -> Tensor:
    """PCM (section 3.3) in loops, of one image: embedding (D,h,w), maps (K,h,w)."""
    theta, y = embedding.flatten(1).T, maps.flatten(1)
    result = torch.zeros_like(y)
    for i in range(len(theta)):
        weights = [
            max(0.0, float(theta[i] @ theta[j] / (theta[i].norm() * theta[j].norm()))) for j in range(len(theta))
        ]
        for k in range(len(y)):
            result[k, i] = sum(w * float(y[k, j]) for j, w in enumerate(weights)) / sum(weights)
    return result.view_as(maps)


def test_pixel_correlation_follows_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    maps = torch.rand(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    found = pixel_correlation(embedding, maps)
    expected = torch.stack([correlated(e, m) for e, m in zip(embedding, maps)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    same = pixel_correlation(torch.ones_like(embedding), maps)
    torch.testing.assert_close(same, maps.mean((-2, -1), keepdim=True).expand_as(maps), rtol=1e-4, atol=1e-5)


def test_the_background_is_what_the_largest_map_leaves() -> None:
    maps = torch.tensor([0.2, 0.7, 0.0, 0.5, 0.1, 0.0]).view(1, 2, 1, 3)
    expected = torch.tensor([[0.5, 0.3, 1.0], [0.0, 0.7, 0.0], [0.5, 0.0, 0.0]]).view(1, 3, 1, 3)
    torch.testing.assert_close(with_background(maps), expected)


def test_losses_are_those_of_the_paper_as_the_method_feeds_them() -> None:
    torch.manual_seed(0)
    method = build_method(tiny({"name": "seam", "rescale": 0.5, "hardest": 0.1}, "test_resnet"), CLASSES).train()
    assert isinstance(method, SEAM)
    batch = squares()
    found = method.losses(batch, 0).terms
    small = F.interpolate(batch.images, size=(32, 32), mode="bilinear")
    levels = [method.encoder(x).maps for x in (batch.images, small)]
    maps = [method.classifier.cam(x[-1]) for x in levels]
    correlated = [method._correlated(*given) for given in zip((batch.images, small), levels, maps)]
    copies = list(zip(maps, correlated))
    grid = copies[1][0].shape[-2:]

    def peak(maps: Tensor) -> Tensor:
        maps = F.interpolate(maps, size=grid, mode="bilinear").clamp(min=0)
        return torch.stack([torch.stack([m / m.max().clamp(min=1e-5) for m in image]) for image in maps])

    er, ecr, count = 0.0, 0.0, CLASSES + 1
    plain = [peak(maps) * batch.tags[:, :, None, None] for maps, _ in copies]
    er = float((plain[0] - plain[1]).detach().abs().mean())
    for image in range(len(batch.images)):
        allowed = torch.cat([torch.ones(1), batch.tags[image]])
        for one, other in ((0, 1), (1, 0)):
            ours = peak(copies[one][1])[image] * allowed[:, None, None]
            apart = []
            for y in range(grid[0]):
                for x in range(grid[1]):
                    values = plain[other][image, :, y, x]
                    best = values.max()
                    target = [1 - best, *(v if v == best else v * 0 for v in values)]
                    apart += [abs(float(target[k].detach() - ours[k, y, x].detach())) for k in range(count)]
            hardest = sorted(apart, reverse=True)[: max(1, round(0.1 * len(apart)))]
            ecr += sum(hardest) / len(hardest) / len(batch.images)
    torch.testing.assert_close(float(found["er"].detach()), er, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(float(found["ecr"].detach()), ecr, rtol=1e-4, atol=1e-5)


def test_terms_of_weight_zero_are_not_computed() -> None:
    method = build_method(tiny({"name": "seam", "weight_er": 0, "weight_ecr": 0}, "test_resnet"), CLASSES).train()
    assert isinstance(method, SEAM)
    method.embedding.register_forward_hook(lambda *_: pytest.fail("pixel correlation is only for ecr"))
    assert set(method.losses(squares(), 0).terms) == {"cls"}
