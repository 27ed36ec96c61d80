"""Frozen models spread over all processes: FSDP2 for their layers; the bridge stays whole and is averaged as usual.

Each layer is gathered when it is used, forward and backward, and let go again. So every process must use layers
equally often: micro-batches are made as many everywhere, and nothing is read that another process might not read.
"""

import os
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from langbridge.errors import ConfigError
from langbridge.model import Batch, LangBridge
from langbridge.model.layers import layers_of
from langbridge.train.processes import here

FSDP = "ACCELERATE_USE_FSDP"
"""What `accelerate launch` sets where its config file asks for FSDP."""


def asked_by_launcher() -> bool:
    """Tell whether the launcher's config asks for sharding, and keep the training library from wrapping on its own."""
    asked = os.environ.get(FSDP, "").lower() == "true"
    os.environ[FSDP] = "false"
    return asked and int(os.environ.get("WORLD_SIZE", "1")) > 1


def shard(model: LangBridge) -> int:
    """Spread the layers of both frozen models over all processes and return how many layers that are.

    Raises ConfigError where one of them learns, or was placed by its loading.
    """
    for name, part in (("encoder", model.encoder), ("language_model", model.language_model)):
        if part.learns:
            raise ConfigError(f"training.shard spreads frozen models, but the {name} learns: set it to false.")
        if part.placed:
            raise ConfigError(f"training.shard and {name}.device_map or quantization exclude each other.")
    model.language_model.shares_opening = False  # processes meet openings at different times
    mesh = init_device_mesh(here().device.type, (here().num_processes,))
    layers = 0
    for pretrained in (model.encoder.model, model.language_model.model):
        for layer in layers_of(pretrained):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            layers += 1
    ignored = [
        name for name, _ in [*model.named_parameters(), *model.named_buffers()] if not name.startswith("bridge.")
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)  # type: ignore[no-untyped-call]
    return layers


def as_many_everywhere(parts: list[Batch], accelerator: Any) -> list[Batch]:
    """Split the largest micro-batches until every process has as many."""
    count = torch.tensor([len(parts)], device=accelerator.device)
    most = int(accelerator.gather(count).max())
    while len(parts) < most:
        parts = sorted(parts, key=lambda part: len(part.target_ids))
        largest = parts.pop()
        middle = len(largest.target_ids) // 2
        order = torch.arange(len(largest.target_ids), device=largest.target_ids.device)
        parts += [largest.rows(order[:middle]), largest.rows(order[middle:])]
    return parts
