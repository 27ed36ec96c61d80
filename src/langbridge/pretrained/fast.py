"""The type that frozen models compute fastest in on this machine, without a loss that counts: `dtype: auto`."""

import functools
import time

import torch

FASTER = 1.3
"""How much faster bfloat16 must be on a CPU to be worth its rounding."""
ROWS, WIDTH = 64, 512
"""A product as of a small LM's layer: long enough to be timed, short where a CPU lacks instructions for bfloat16."""
ROUNDS = 5


@functools.cache
def fast_type() -> str:
    """Return bfloat16 on a GPU that has it and on a CPU that is measured to be faster with it, else float32."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if seconds(torch.float32) >= FASTER * seconds(torch.bfloat16) else "float32"


def seconds(dtype: torch.dtype) -> float:
    """Return the shortest of some matrix products on the CPU."""
    left, right = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - began)
    return min(taken)
