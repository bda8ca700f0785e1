"""Draws docs/demo.png from a finished demo run: python docs/demo_picture.py runs/demo"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tagmask.data import read_image, read_mask, tag_vector
from tagmask.label import Inference
from tagmask.label.infer import best_labels
from tagmask.label.overlay import heat, overlay
from tagmask.workflow import open_run, reopen

ROWS = 4


def main(run: str) -> None:
    """Write the picture for validation scenes with several tags: scene | CAM | refined CAM | mask | truth."""
    folder, config, method = open_run(run)
    collection = reopen(folder, config)
    inference = Inference(method, config)
    items = [item for item in collection.split("val") if len(item.tags or ()) >= 2][:ROWS]
    titles = ["photo and its tags", "CAM", "refined by colours", "mask from tags", "truth (never seen)"]
    figure, axes = plt.subplots(ROWS, 5, figsize=(12, 2.05 * ROWS), layout="constrained")
    for row, item in zip(axes, items, strict=True):
        photo = read_image(item.image)
        image = photo.permute(1, 2, 0).numpy()
        tags = tag_vector(item.tags or (), len(collection.classes))
        cams = inference.cams(photo, tags)
        refined = best_labels(inference.refine(photo, cams, tags), photo).numpy()
        labels = inference.labels(photo, tags)[0].numpy()
        truth = read_mask(item.mask or Path(), len(collection.classes)).numpy()
        pictures = [image, heat(image, cams.max(dim=0).values.numpy())]
        pictures += [overlay(image, np.asarray(mask)) for mask in (refined, labels, truth)]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
        row[0].set_title(", ".join(collection.classes[t] for t in item.tags or ()), fontsize=10, loc="left")
    for axis, title in zip(axes[0][1:], titles[1:], strict=True):
        axis.set_title(title, fontsize=10, loc="left")
    figure.savefig(Path(__file__).with_name("demo.png"), dpi=80)


if __name__ == "__main__":
    main(sys.argv[1])
