"""Bootstrap intervals and paired permutation tests; all seeded."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
ROUNDS = 2000


def interval(statistic: Callable[[NDArray[np.int64]], float], size: int, *, seed: int = 0) -> list[float]:
    """Return the bootstrap 95% interval of `statistic`, a function of resampled item numbers (items,)."""
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, size, size)) for _ in range(ROUNDS)]
    low, high = np.percentile(values, [2.5, 97.5])
    return [round(float(low), 4), round(float(high), 4)]


def mean_interval(scores: Numbers) -> list[float]:
    """Return the bootstrap 95% interval of the mean of (items,) scores."""
    return interval(lambda rows: float(scores[rows].mean()), len(scores))


def paired_p_value(ours: Numbers, theirs: Numbers, *, seed: int = 0) -> float:
    """Return the two-sided p value of a paired permutation test on the mean difference of (items,) scores."""
    difference = ours - theirs
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(ROUNDS, len(difference)))
    extreme = np.abs((signs * difference).mean(axis=1)) >= abs(difference.mean()) - 1e-12
    return float((extreme.sum() + 1) / (ROUNDS + 1))


def wilson(value: float, size: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share of `size` items.

    Used where all items agree: resampling them would claim certainty.
    """
    z = 1.96
    centre = (value + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * float(np.sqrt(value * (1 - value) / size + z * z / (4 * size * size)))
    return max(0.0, centre - half), min(1.0, centre + half)
