"""The card of a model, ``model/README.md``: what was learned from what, how good it is, whose weights it began with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from tagmask.config import RunConfig
from tagmask.encoders.weights import LITE0_PACKAGE
from tagmask.files import read_text, write_text

TAUGHT = {
    "tags": "image tags only",
    "masks": "masks that were made for it",
    "masks of tags": "masks that were made from image tags",
    "masks of true masks": "masks by a model that learned from true masks",
    "review": "and from people's review of them",
    "saliency": "with saliency, learned from masks of other photos",
}
"""The words of ``supervision``, and what stands behind them after a plus, for people."""
START = "<!-- tagmask writes this part anew with each score; what stands above and below stays as you edit it -->"
END = "<!-- end of what tagmask writes -->"
FRONT = """---
library_name: tagmask
pipeline_tag: image-segmentation
tags: [image-segmentation{}]
license: unknown
---

"""
WEAK = ", weakly-supervised"
"""Tag of models that learned from image tags, or from masks that were made of them."""
UNKNOWN = "not known: look it up where you got them"
TORCHVISIONS = r"file resnet\d+-[0-9a-f]{8}\.pth"
"""In an origin: a file that is named as torchvision names its own."""
NVIDIA = "NVIDIA Source Code License (SegFormer): research and other non-commercial use only"


def write_card(
    folder: Path,
    config: RunConfig,
    about: Mapping[str, Any],
    taught: str = "",
    data: Sequence[str] = (),
    scores: Sequence[str] = (),
) -> None:
    """Write README.md with a hub's front matter; of one that is there, what stands between START and END.

    The rest of it is the user's: a front matter that was edited stays, and a card without these marks stays whole.
    about: the model's classes.json. taught: the supervision, if more than ``about`` says of it is known. data, scores:
    lines about them, which name none of the user's files.
    """
    taught = taught or about["supervision"]
    words = [TAUGHT.get(word, word) for word in taught.split(" + ")]
    sections = [
        f"""{START}

# {config.method.name} on {config.encoder.name}

A tagmask model, trained on {", ".join(words)}, {config.train.steps} steps of {config.train.batch_size} images at \
{config.views.crop} px, seed {config.seed}.

- Classes: {", ".join(about["classes"])} (0 is background)
- Parameters: {about["parameters"] / 1e6:.1f} M
- Encoder weights: {without_names(about["weights_origin"])}
- Licence of these weights: {licence(config.encoder.name, about["weights_origin"])}

```python
import tagmask
segmenter = tagmask.load("this folder")
mask = segmenter.predict("photo.jpg").labels
```
"""
    ]
    for title, lines in (("Data", data), ("Scores", scores)):
        if lines:
            sections.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n")
    part, card = "\n".join(sections), folder / "README.md"
    before, after = FRONT.format(WEAK if taught.startswith(("tags", "masks of tags")) else ""), f"{END}\n"
    if card.is_file():
        front, start, rest = read_text(card).partition(START)
        _, end, after = rest.partition(END)
        if not start or not end:
            return
        before, after = before if front in (FRONT.format(WEAK), FRONT.format("")) else front, end + after
    write_text(card, f"{before}{part}\n{after}")


def without_names(origin: str) -> str:
    """An origin of weights in which files of the user have no name but their digest."""
    return re.sub(rf"(?!{TORCHVISIONS} )\bfile .+? \(sha256 ", "a file (sha256 ", origin)


def licence(encoder: str, origin: str) -> str:
    """Licences of the weights that a training started from, by their origin in words; UNKNOWN where nobody told."""
    found = []
    for i, part in enumerate(origin.split("; ")):
        hub = re.search(r"hub (\S+) \(", part)
        if part.startswith("none"):
            found.append("none needed, they were random")
        elif "nvidia/mit-b" in part or i == 0 and encoder.startswith("mit_b"):
            found.append(NVIDIA)
        elif LITE0_PACKAGE in part:
            found.append("Apache-2.0")
        elif re.search(TORCHVISIONS, part):
            found.append("BSD-3-Clause")
        else:
            known = timm.get_pretrained_cfg(hub[1]) if hub and timm.is_model(hub[1].partition(".")[0]) else None
            found.append(known.license if known is not None and known.license else UNKNOWN)
    return "; ".join(dict.fromkeys(found))
