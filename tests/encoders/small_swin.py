"""A Swin small enough for tests, registered with timm, which has none of its own."""

from timm.models import is_model, register_model, swin_transformer

NAME = "test_swin"


def _build(pretrained: bool = False, **options):
    shape = {"patch_size": 4, "window_size": 7, "embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 3, 6)}
    return swin_transformer._create_swin_transformer(
        "swin_tiny_patch4_window7_224", pretrained=pretrained, **(shape | options)
    )


if not is_model(NAME):
    _build.__name__, _build.__module__ = NAME, swin_transformer.__name__
    register_model(_build)
