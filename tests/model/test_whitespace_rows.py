"""Rows of added whitespace tokens beside the embedding table of every encoder family."""

import pytest
import torch

from conftest import LETTERS
from families import ENCODERS, encoder_half, make
from langbridge.model import Encoder

FIRST = len(LETTERS)  # the first id behind the vocabulary


def with_rows(family: str) -> Encoder:
    encoder = Encoder(encoder_half(make(ENCODERS[family])))
    encoder.add_whitespace([FIRST, FIRST + 1])
    encoder.freeze()
    return encoder


@pytest.mark.parametrize("family", ENCODERS)
def test_only_the_rows_learn_and_they_do(family: str) -> None:
    """Hazard: rows that were unfrozen but run under no_grad never trained."""
    encoder = with_rows(family)
    assert encoder.whitespace is not None
    encoder.whitespace.requires_grad_(True)
    encoder.train()
    ids = torch.tensor([[1, 9, FIRST, 30, 2], [1, FIRST + 1, 9, 2, 0]])
    mask = (ids != 0).long()
    encoder(ids, mask).square().sum().backward()
    assert encoder.whitespace.grad is not None
    assert encoder.whitespace.grad.abs().sum(dim=1).min() > 0
    assert [p.grad for p in encoder.parameters() if p is not encoder.whitespace and p.grad is not None] == []
    assert not encoder.model.training  # a body that stays as it is has no dropout


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_other_tokens_read_as_before(family: str) -> None:
    plain, encoder = Encoder(encoder_half(make(ENCODERS[family]))).eval(), with_rows(family)
    ids = torch.tensor([[1, 9, 30, 31, 2]])
    assert torch.equal(plain(ids, torch.ones_like(ids)), encoder(ids, torch.ones_like(ids)))
    other = torch.tensor([[1, 9, FIRST, 31, 2]])
    assert not torch.allclose(plain(ids, torch.ones_like(ids)), encoder(other, torch.ones_like(ids)))


@torch.no_grad()
def test_rows_start_as_spare_rows_or_as_the_mean() -> None:
    """M2M100 scales what it looks up: rows are vectors as the encoder reads them."""
    for family in ("M2M100", "BERT"):
        encoder = Encoder(encoder_half(make(ENCODERS[family])))
        table = encoder.model.get_input_embeddings()
        everything = table(torch.arange(FIRST))
        encoder.add_whitespace([FIRST - 1, FIRST])  # the first of them has a row of its own
        assert encoder.whitespace is not None
        assert torch.equal(encoder.whitespace[0], everything[-1])
        assert torch.allclose(encoder.whitespace[1], everything.mean(dim=0), atol=1e-6)
