"""``seam``: self-supervised equivariant attention (Wang et al., CVPR 2020): ER and ECR over two scales, and PCM."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tagmask.cam import peak_normalize
from tagmask.encoders import Encoder
from tagmask.heads import Classifier
from tagmask.losses import equivariance
from tagmask.methods.base import ClassifierConfig, ClassifierMethod
from tagmask.registry import METHODS
from tagmask.strict import Factor, Positive
from tagmask.tensors import resize
from tagmask.types import Batch, Losses


class SEAMConfig(ClassifierConfig):
    """Settings of ``seam``; the defaults are the paper's on VOC."""

    name: Literal["seam"] = "seam"
    rescale: float = Field(0.3, gt=0, lt=1, description="size of the small copy, as a share of the image's")
    hardest: float = Field(0.2, gt=0, le=1, description="share of the values that ecr counts, the most different ones")
    weight_cls: Positive = Field(1.0, description="of classification, the mean of both copies")
    weight_er: Factor = Field(1.0, description="ER: of class maps that agree over both copies")
    weight_ecr: Factor = Field(1.0, description="ECR: of correlated maps that agree with the other copy's maps")


@METHODS.register("seam")
class SEAM(ClassifierMethod):
    """A classifier on two scales of an image; its CAMs are class maps after the pixel correlation module (PCM)."""

    config_class = SEAMConfig
    config: SEAMConfig

    def __init__(self, config: SEAMConfig, encoder: Encoder, classes: int) -> None:
        super().__init__(config, encoder, classes)
        self.classifier = Classifier(encoder.channels[-1], classes, pooling="avg")
        self.reduced = nn.ModuleList(nn.Conv2d(c, n, 1, bias=False) for c, n in zip(encoder.channels[-3:-1], (64, 128)))
        self.embedding = nn.Conv2d(3 + sum((64, 128)[: len(self.reduced)]), 192, 1, bias=False)

    def losses(self, batch: Batch, step: int) -> Losses:
        """cls; er: |A(F(I)) − F(A(I))|; ecr: maps of one copy against correlated ones of the other (section 3.4)."""
        cfg, size = self.config, torch.Size(max(32, round(n * self.config.rescale)) for n in batch.images.shape[-2:])
        copies = [(x, self.encoder(x).maps) for x in (batch.images, resize(batch.images, size))]
        maps = [self.classifier.cam(levels[-1]) for _, levels in copies]
        terms = {"cls": torch.stack([self.tag_loss(x.mean((-2, -1)), batch.tags) for x in maps]).mean()}
        grid, tags = maps[1].shape[-2:], nn.functional.pad(batch.tags, (1, 0), value=1.0)[:, :, None, None]
        plain = [peak_normalize(resize(x.float(), grid)) * tags[:, 1:] for x in maps]
        if cfg.weight_er > 0:
            terms["er"] = equivariance(*plain)
        for copy, own, other in zip(copies, maps, reversed(plain)) if cfg.weight_ecr > 0 else ():
            correlated = peak_normalize(resize(self._correlated(*copy, own), grid)) * tags
            apart = (with_background(other.detach()) - correlated).abs().flatten(1)
            terms["ecr"] = terms.get("ecr", 0) + apart.topk(max(1, round(cfg.hardest * apart.shape[1]))).values.mean()
        return self.weighted(terms)

    def _correlated(self, images: Tensor, levels: list[Tensor], maps: Tensor) -> Tensor:
        """(B,C+1,h,w) in [0,1], background first. PCM learns by ecr alone: no gradient goes into levels and maps."""
        earlier = [reduce(x.detach()).relu() for reduce, x in zip(self.reduced, levels[-3:-1])]
        seen = torch.cat([resize(x.to(maps.dtype), maps.shape[-2:]) for x in (images, *earlier)], 1)
        return pixel_correlation(self.embedding(seen).float(), with_background(peak_normalize(maps.detach().float())))

    def cam_maps(self, images: Tensor) -> Tensor:
        levels = self.encoder(images).maps
        return self._correlated(images, levels, self.classifier.cam(levels[-1]))[:, 1:]


def with_background(maps: Tensor) -> Tensor:
    """(B,C+1,h,w): 1 − the largest of the maps (B,C,h,w) in [0,1]; the maps, but 0 where another is larger."""
    return torch.cat([1 - maps.amax(1, keepdim=True), maps * (maps == maps.amax(1, keepdim=True))], 1)


def pixel_correlation(embedding: Tensor, maps: Tensor) -> Tensor:
    """PCM (section 3.3): maps ŷ (B,K,h,w), averaged with weights ReLU(cos(θ_i, θ_j)) of the embedding θ (B,D,h,w)."""
    unit = nn.functional.normalize(embedding.flatten(2), dim=1)
    weights = (unit.mT @ unit).relu()
    return (maps.flatten(2) @ (weights / (weights.sum(1, keepdim=True) + 1e-5))).view_as(maps)
