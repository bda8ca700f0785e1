"""Which pretrained classes a tag is made of, against loops."""

from __future__ import annotations

import torch

from tagmask.cam.class_association import association
from tests.methods.class_loops import shares


def test_the_association_follows_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(7, 5, generator=generator, dtype=torch.float64).softmax(1)
    # The first tag is in every photo, the last in none.
    tags = torch.tensor([[1, i % 2, i < 2, 0] for i in range(7)], dtype=torch.float64)
    rows = torch.cat([tags, torch.ones(7, 1, dtype=torch.float64)], 1).T
    found = association(rows @ probabilities, rows.sum(1))
    torch.testing.assert_close(found, torch.tensor(shares(probabilities, tags), dtype=torch.float64))
    assert found[3].sum() == 0 and torch.allclose(found[:3].sum(1), torch.ones(3, dtype=torch.float64))
