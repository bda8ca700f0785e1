"""Clicks that a promptable model answers: small models of the families, written as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tagmask.errors import DataError, WeightsError
from tagmask.guides.promptable import Promptable

transformers = pytest.importorskip("transformers")

SIDE = 64
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
DECODER = {"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 8}
PROMPT = {"hidden_size": 8, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4}
VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8,
    "output_channels": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 4, "mlp_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module", params=["Sam", "SamHQ", "Sam2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(0)
    model, processor = sam2() if request.param == "Sam2" else sam(request.param)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return out


def sam2() -> tuple[Any, Any]:
    stages = {
        "blocks_per_stage": [1] * 4, "embed_dim_per_stage": [16, 32, 64, 128], "window_size_per_stage": [4] * 4,
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_positional_embedding_background_size": [4, 4],
        "global_attention_blocks": [], "hidden_size": 16, "num_attention_heads": 1, "image_size": [SIDE, SIDE],
    }  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=transformers.Sam2HieraDetConfig(**stages),
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    wide = {"hidden_size": 32}
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=PROMPT | wide | {"patch_size": 16},
        mask_decoder_config=DECODER | wide,
    )
    sizes = {"size": {"height": SIDE, "width": SIDE}, "mask_size": {"height": 16, "width": 16}}
    processor = transformers.Sam2Processor(transformers.Sam2ImageProcessor(**sizes), target_size=SIDE)
    return transformers.Sam2Model(config), processor


def sam(family: str) -> tuple[Any, Any]:
    decoder: dict[str, Any] = dict(DECODER)
    if family == "SamHQ":
        decoder["vit_dim"] = VISION["hidden_size"]
    config = getattr(transformers, f"{family}Config")(
        vision_config=VISION, prompt_encoder_config=PROMPT, mask_decoder_config=decoder
    )
    sizes = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    sizes |= {"mask_size": {"longest_edge": 32}, "mask_pad_size": {"height": 32, "width": 32}}
    processor = getattr(transformers, f"{family}Processor")(transformers.SamImageProcessor(**sizes))
    return getattr(transformers, f"{family}Model")(config), processor


def test_a_mask_is_the_librarys_own(folder: Path) -> None:
    """Of its plain forward pass: the points in its processor, its best mask at the photo's size."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForMaskGeneration.from_pretrained(folder).eval()
    ours = Promptable(folder)
    for inside, outside in [([(10, 5)], []), ([(10, 5), (50, 30)], [(3, 39)]), ([(0, 0)], [(59, 39)])]:
        given = processor(
            images=PHOTO,
            input_points=[[[list(map(float, point)) for point in (*inside, *outside)]]],
            input_labels=[[[1] * len(inside) + [0] * len(outside)]],
            return_tensors="pt",
        )
        with torch.no_grad():
            found = model(**given)
        sizes = [given[key] for key in ("original_sizes", "reshaped_input_sizes") if key in given]
        masks = processor.post_process_masks(found.pred_masks, *sizes)[0]
        wanted = masks[0, int(found.iou_scores[0, 0].argmax())].numpy()
        assert np.array_equal(ours.mask(PHOTO, inside, outside), wanted), (inside, outside)
    assert ours.mask(PHOTO[:20, :30], [(3, 3)]).shape == (20, 30), "another photo is another image"


def test_clicks_give_their_class_what_the_model_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in whose mask is the square around the first point, without those around points outside."""
    asked: list[Any] = []

    def mask(self: Promptable, photo: np.ndarray, inside: Any, outside: Any = ()) -> np.ndarray:
        asked.append((inside, outside))
        found = np.zeros(photo.shape[:2], bool)
        for x, y in inside:
            found[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = True
        return found

    monkeypatch.setattr(Promptable, "mask", mask)
    model = Promptable.__new__(Promptable)
    before = np.full((40, 60), 7, np.uint8)
    after = model.spread(PHOTO, before, [(10, 10, 2), (12, 10, 0), (40, 20, 2)])
    assert asked == [([(12, 10)], [(10, 10), (40, 20)]), ([(10, 10), (40, 20)], [(12, 10)])]
    assert after[10, 10] == after[20, 40] == 2 and after[10, 15] == 0 and after[30, 5] == 7
    assert (before == 7).all()
    with pytest.raises(DataError, match="outside of the photo"):
        model.spread(PHOTO, before, [(60, 0, 1)])


def test_a_model_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=str(tmp_path)):
        Promptable(tmp_path)
