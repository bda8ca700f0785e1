"""``tagmask.load(...)``: a trained model as a plain object for other people's code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tagmask.config import LabelConfig, RunConfig, merge
from tagmask.data import read_image
from tagmask.data.pixels import image_array
from tagmask.errors import DataError, nearest
from tagmask.label import hub
from tagmask.label.infer import Inference
from tagmask.label.look import Look
from tagmask.label.mask import Prediction
from tagmask.methods import Method
from tagmask.methods.base import MAIN
from tagmask.training.folder import RunFolder
from tagmask.training.model_files import load_model

Photo = str | Path | Image.Image | np.ndarray | Tensor


class Segmenter:
    """A loaded model. classes: foreground names; ``predict`` needs no tags, ``cams`` and ``label`` take them.

    classifier: what makes the CAMs; default: the model itself. folder: where the model lies.
    """

    def __init__(
        self,
        method: Method,
        classes: list[str],
        config: RunConfig,
        classifier: Inference | None = None,
        folder: Path | None = None,
    ) -> None:
        self.classes = classes
        self.method = method
        self.inference = Inference(method, config)
        self.classifier = classifier or self.inference
        self.folder = folder

    @overload
    def predict(self, image: Photo) -> Prediction: ...
    @overload
    def predict(self, image: list[Photo]) -> list[Prediction]: ...
    def predict(self, image: Any) -> Any:
        """Masks of one photo or a list (path, PIL image, uint8 array (H,W,3), uint8 tensor (3,H,W)), without tags."""
        if isinstance(image, list | tuple):
            return [self.predict(one) for one in image]
        look = Look(self.inference, to_tensor(image))
        return self._result(look, *look.prediction)

    def label(self, image: Photo, tags: Sequence[str]) -> Prediction:
        """Mask of a photo whose content is known: only classes in ``tags`` can appear."""
        look = Look(self.inference, to_tensor(image), self._tags(tags))
        return self._result(look, *look.mask)

    def cams(self, image: Photo, tags: Sequence[str] | None = None, which: str = MAIN) -> np.ndarray:
        """float32 (C,h,w) class activation maps in [0,1] on the working grid; classes outside ``tags`` are 0.

        which: 'main', those that are used, or others that the method has, such as 'aux'. Raises ConfigError for those
        that it has not.
        """
        given = None if tags is None else self._tags(tags)
        return self.classifier.cams(to_tensor(image), given, which).cpu().numpy()

    def regions(self, image: Photo, tags: Sequence[str]) -> dict[str, np.ndarray]:
        """The regions that the method finds for its CAMs' classes, by name: of ``eca`` seeds and region maps.

        bool and float32 (C+1,h,w) of the background and each class; integer (H,W) labels. Raises ConfigError for a
        method without regions.
        """
        found = self.classifier.analyse("regions", to_tensor(image), self._tags(tags))
        return {name: one.cpu().numpy() for name, one in found.items()}

    def push_to_hub(
        self,
        name: str,
        private: bool = True,
        pictures: Sequence[Photo] = (),
        token: str | None = None,
        license: str | None = None,
    ) -> str:
        """Send the model with its card to the model hub as user/name; returns its address there.

        private: of a new repository; a public one that is there is refused. pictures: photos that the card shows with
        their masks; none unless you name some, as photos are private. license: the model's, as the hub spells it.
        Nothing says where your data lies. Raises DataError where the hub refuses.
        """
        if self.folder is None:
            raise DataError(f"{name}: this segmenter was not loaded from a folder, which is what is sent.")
        drawn = [self.predict(photo).overlay() for photo in pictures]
        return hub.push(self.folder, name, private, drawn, token, license)

    def _tags(self, tags: Sequence[str]) -> Tensor:
        vector = torch.zeros(len(self.classes))
        for tag in tags:
            if tag not in self.classes:
                raise DataError(f"Tag '{tag}' is none of this model's classes.{nearest(tag, self.classes)}")
            vector[self.classes.index(tag)] = 1
        return vector

    def _result(self, look: Look, labels: Tensor, scores: Tensor) -> Prediction:
        photo = look.photo.permute(1, 2, 0).cpu().numpy()
        return Prediction(labels.cpu().numpy(), ["background", *self.classes], photo, scores.cpu().numpy())


def load(path: str | Path, device: str = "auto", overrides: dict[str, Any] | None = None) -> Segmenter:
    """A run folder, its ``model/`` folder, or a model on the Hugging Face hub as a Segmenter.

    path: of a folder; where there is none, user/name or user/name@revision on the hub. overrides: fields of
    LabelConfig. Of a run with a stage 'segmenter' that is the stage's; CAMs are the classifier's. Raises DataError when
    the folder holds no finished model, and where the hub gives none.
    """
    run = RunFolder(hub.local(path))
    if not run.path.is_dir():
        raise DataError(
            f"{path}: there is no such folder. Give a finished run, its model/ folder, or a name on the hub."
        )
    folder = run.model if run.model.is_dir() else run.path
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    def loaded(place: Path) -> tuple[Method, list[str], RunConfig]:
        method, config, classes = load_model(place, device)
        merged = merge({"label": config.label.model_dump()}, {"label": overrides or {}})
        config.label = LabelConfig.model_validate(merged["label"])
        return method, classes, config

    first = loaded(folder)
    if run.last is run:
        return Segmenter(*first, folder=folder)
    classifier = Inference(first[0], first[2]) if first[0].has_cams else None
    return Segmenter(*loaded(run.last.model), classifier, run.last.model)


def to_tensor(photo: Photo) -> Tensor:
    """uint8 (3,H,W) from a path, PIL image, uint8 array (H,W,3) or (H,W), or uint8 tensor (3,H,W)."""
    if isinstance(photo, str | Path):
        return read_image(Path(photo))
    if isinstance(photo, Image.Image):
        return torch.from_numpy(image_array(photo))
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim not in (2, 3) or (photo.ndim == 3 and photo.shape[2] != 3):
            raise DataError(f"An array must be uint8 (H,W,3) or (H,W), this is {photo.dtype} {photo.shape}.")
        return torch.from_numpy(image_array(Image.fromarray(photo)))
    if photo.dtype != torch.uint8 or photo.ndim != 3 or photo.shape[0] != 3:
        raise DataError(f"A tensor must be uint8 (3,H,W), this is {photo.dtype} {tuple(photo.shape)}.")
    return photo
