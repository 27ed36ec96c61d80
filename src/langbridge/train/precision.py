"""fp32 or bf16 on this CPU: measured on the model's own work, as neither is faster everywhere."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.train.halves import Halves

SAMPLES = 8
FASTER = 1.3
"""How much faster bf16 must be to be worth its rounding."""
SIMILAR = 0.97
"""Cosine that the bf16 gradient must have with the fp32 one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one training batch took, and gave, in both types."""

    speedup: float
    """fp32 seconds / bf16 seconds."""
    cosine: float
    """Between the two gradients of what learns."""

    @property
    def choice(self) -> str:
        """`bf16` where it is clearly faster and nearly as exact, else `fp32`."""
        return "bf16" if self.speedup >= FASTER and self.cosine >= SIMILAR else "fp32"


def measure(model: LangBridge, examples: Sequence[Example]) -> Measured:
    """Run one small batch forward and backward in both types, as training would; the model is left as it was."""
    batch = model.collate(examples[:SAMPLES]).to(model.language_model.device)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(bf16: bool) -> tuple[float, Tensor]:
        with torch.random.fork_rng():  # the same dropout in each run
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(batch)
            gradients = torch.autograd.grad(loss, learning, allow_unused=True)  # an encoder may have idle weights
        used = [gradient.flatten() for gradient in gradients if gradient is not None]
        return time.perf_counter() - began, torch.cat(used).float()

    run(False)  # the first run of each also chooses kernels
    slow, exact = run(False)
    halves = Halves(model)
    halves.hold()
    try:
        run(True)
        fast, rounded = run(True)
    finally:
        halves.release()
    cosine = torch.nn.functional.cosine_similarity(exact, rounded, dim=0)
    return Measured(speedup=slow / fast, cosine=float(cosine))
