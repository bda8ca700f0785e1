import pytest
import torch

from tagmask.errors import TagmaskError
from tagmask.tensors import check_shapes, full


def test_shapes_that_fit() -> None:
    cams, tags = torch.zeros(2, 5, 4, 3), torch.zeros(2, 5)
    check_shapes("Test", "CAMs (B,C,h,w) and tags (B,C)", cams, tags)
    check_shapes("Test", "tags (B,C) and masks (B,C+1,h,3)", tags, torch.zeros(2, 6, 9, 3))
    check_shapes("Test", "masks (B,C+1,h,w) and tags (B,C), valid (B,h,w)", torch.zeros(2, 6, 9, 3), tags, None)


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (2, 5, 1), (2,), ()])
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(TagmaskError, match=r"Test takes CAMs \(B,C,h,w\) and tags \(B,C\).*\(2, 5, 4, 3\)"):
        check_shapes("Test", "CAMs (B,C,h,w) and tags (B,C)", torch.zeros(2, 5, 4, 3), torch.zeros(shape))
    with pytest.raises(TagmaskError, match="Test"):
        check_shapes("Test", "boxes (B,4)", torch.zeros(2, 3))


def test_full() -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert [full(torch.zeros(1, dtype=kind)).dtype for kind in kinds] == [torch.float32] * 3 + [torch.float64]
