"""Drawing tokens against the warpers of transformers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from langbridge.engine.sampling import draw, generator_of, likely
from langbridge.generate import Sampling


@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([5, 300, 2000]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 7, 290]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
)
def test_the_tokens_that_may_be_drawn(seed: int, size: int, spread: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread
    wanted = logits[None]
    if top_k:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    ids, probabilities = likely(logits, top_k, top_p)
    found = torch.zeros(size).index_put((ids,), probabilities)
    # at the border of a nucleus, sums in another order may keep one token more or fewer
    assert (found - wanted[0].softmax(dim=0)).abs().sum() < 2e-2 + float(probabilities.min())


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator = generator_of(Sampling(temperature=1.0, seed=4), 0)
    assert generator is not None
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(logits, Sampling(temperature=2.0), generator)] += 1
    assert counts / 4000 == pytest.approx((logits / 2).softmax(dim=0), abs=0.03)


def test_completions_of_neighbouring_seeds_differ() -> None:
    logits = torch.zeros(1000)
    sampling = [Sampling(temperature=1.0, seed=seed) for seed in range(4)]
    drawn = [draw(logits, s, generator_of(s, i)) for s in sampling for i in range(4)]  # type: ignore[arg-type]
    assert len(set(drawn)) == len(drawn)
    assert generator_of(Sampling(), 0) is None
