"""Saliency: an ONNX network of U²-Net's family that shows where a photo has an object, whatever it is.

It learned this from masks of other photos. Masks that use it are made of more than tags, and their notes say so.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tagmask.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from tagmask.errors import ConfigError, WeightsError
from tagmask.onnx_session import open_session

SIDE = 320
"""Of the network's input, pixels, where its file does not say: that of U²-Net (Qin et al., 2020)."""
KEPT = 2048
"""Photos whose maps are kept in memory, 0.1 MB each; further ones are computed each time."""


class Saliency:
    """Saliency of photos by an ONNX network that takes one image (1,3,S,S) and gives maps (1,1,S,S) in [0,1] first.

    path: of the file. Raises ConfigError without onnxruntime, WeightsError for a file that is no such network.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.session = open_session(path, torch.get_num_threads())
        except ImportError as error:
            raise ConfigError(
                "guides.saliency needs onnxruntime: pip install 'tagmask[saliency]', or leave guides.saliency out."
            ) from error
        except Exception as error:  # onnxruntime has a class for each reason, none of which is documented
            raise WeightsError(
                f"{path}: not readable as an ONNX network ({' '.join(str(error).split())[:200]}). Fetch it again, or "
                "set guides.saliency to another one."
            ) from error
        inputs = self.session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or isinstance(shape[1], int) and shape[1] != 3:
            raise WeightsError(
                f"{path}: takes {', '.join(f'{i.name} {i.shape}' for i in inputs)}; a saliency network takes one image "
                "(1,3,S,S). Set guides.saliency to another one."
            )
        self.input, self.first_map = inputs[0].name, self.session.get_outputs()[0].name
        self.size = [side if isinstance(side, int) else SIDE for side in shape[2:]]
        self._maps: dict[bytes, Tensor] = {}

    def __call__(self, photo: Tensor) -> Tensor:
        """float32 (1,1,s,s) in [0,1], on the network's own grid, of a photo uint8 (3,H,W)."""
        key = hashlib.sha256(photo.cpu().contiguous().numpy().tobytes() + bytes(str(photo.shape), "ascii")).digest()
        found = self._maps.get(key)
        if found is None:
            found = self.compute(photo)
            if len(self._maps) < KEPT:
                self._maps[key] = found
        return found.float() / 255

    def compute(self, photo: Tensor) -> Tensor:
        """uint8 (1,1,s,s), 255 for 1."""
        image = F.interpolate(photo.cpu()[None].float(), size=self.size, mode="bilinear", antialias=True)
        image = image / image.amax().clamp(min=1)  # as U²-Net was trained
        image = (image - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
        try:
            first = self.session.run([self.first_map], {self.input: image.numpy()})[0]
        except Exception as error:
            raise WeightsError(
                f"{self.path}: does not run on an image of {self.size[0]}x{self.size[1]} pixels "
                f"({' '.join(str(error).split())[:200]}). Set guides.saliency to another one."
            ) from error
        shape, low, high = np.shape(first), np.min(first, initial=np.inf), np.max(first, initial=-np.inf)
        if len(shape) != 4 or shape[:2] != (1, 1) or not (low >= -1e-3 and high <= 1 + 1e-3):
            raise WeightsError(
                f"{self.path}: gives {shape} with values from {low:.3g} to {high:.3g}; a saliency network gives a map "
                "(1,1,S,S) from 0 to 1. Set guides.saliency to another one."
            )
        return (torch.from_numpy(first).float().clamp(0, 1) * 255).round().byte()


@lru_cache(maxsize=1)
def open_saliency(name: str, weights_dir: Path | None = None) -> Saliency:
    """The network that ``find_saliency`` finds. Asked again, it is the same one, with the maps that it keeps."""
    return Saliency(find_saliency(name, weights_dir))


def background_factor(saliency: Tensor) -> Tensor:
    """2 · (1 − √s): what the score of the background is multiplied by where the saliency is s, in [0,1].

    It is 1 at s = 0.25, as these networks leave out more of an object than they add to it; 2 where nothing is salient,
    and 0 where something surely is. tagmask's own rule (docs/notes/recipe.md).
    """
    return 2 * (1 - saliency.clamp(0, 1).sqrt())


def find_saliency(name: str, weights_dir: Path | None = None) -> Path:
    """The file that ``guides.saliency`` names: a path, or a name such as u2netp.

    '<name>.onnx' is looked for in weights_dir, $TAGMASK_WEIGHTS and ~/.u2net, where rembg keeps its networks. Raises
    WeightsError that lists the places.
    """
    if name.endswith(".onnx"):
        path = Path(name).expanduser()
        if os.path.isfile(path):
            return path
        raise WeightsError(f"{path}: no such file. guides.saliency takes an .onnx file, or a name such as u2netp.")
    places = [weights_dir, os.environ.get("TAGMASK_WEIGHTS"), "~/.u2net"]
    folders = [Path(place).expanduser() for place in places if place]
    for folder in folders:
        if os.path.isfile(folder / f"{name}.onnx"):
            return folder / f"{name}.onnx"
    raise WeightsError(
        f"guides.saliency={name}: there is no {name}.onnx in {', '.join(map(str, folders))}. Put it there ('rembg d "
        f"{name}' of the package rembg fetches it), set guides.saliency to the path of an .onnx file, or leave it out."
    )
