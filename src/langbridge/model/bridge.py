"""Bridges: encoder states -> soft prompt. The only part that must be trained."""

import itertools
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from langbridge.config import BridgeConfig
from langbridge.errors import ConfigError
from langbridge.model.embeddings import Embeddings, join

PLACES_LOUDER = 4.0
"""Size of a resampler's places relative to normed states: at 1, latents hardly learn to find their place."""


class Bridge(nn.Module, ABC):
    """What all bridges share: a look at the encoder's layers, a map, and one learned vector that ends the soft prompt.

    `mixed` layers of width `encoder_dim` are mixed first where it is more than one. `scale` is the standard deviation
    of the LM's word embeddings, with which `boundary` starts. While training, each state is hidden from the bridge with
    probability `token_dropout`.
    """

    token_dropout = 0.0

    def __init__(self, encoder_dim: int, lm_dim: int, *, mixed: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.encoder_dim, self.lm_dim = encoder_dim, lm_dim
        self.mix = LayerMix(mixed) if mixed > 1 else nn.Identity()
        self.boundary = nn.Parameter(torch.empty(lm_dim))
        nn.init.normal_(self.boundary, std=scale)

    @property
    @abstractmethod
    def last(self) -> nn.Linear:
        """The layer that ends in the LM's space."""

    @abstractmethod
    def map(self, states: Tensor, mask: Tensor) -> Embeddings:
        """Map mixed states (batch, source, encoder_dim) to soft-prompt vectors without the boundary."""

    def lengths(self, mask: Tensor) -> Tensor:
        """Return how many vectors the soft prompt of each row of mask (batch, source) has, boundary included."""
        return mask.sum(dim=1) + 1

    def forward(self, states: Tensor, mask: Tensor) -> Embeddings:
        """Map what the encoder gave, with mask (batch, source), to the soft prompt (batch, prompt, lm_dim)."""
        if self.training and self.token_dropout:
            mask = thinned(mask, self.token_dropout)
        soft = self.map(self.mix(states), mask)
        batch = states.shape[0]
        end = self.boundary.expand(batch, 1, -1)
        return join(soft, Embeddings(end, mask.new_ones(batch, 1)))

    @torch.no_grad()
    def match(self, states: Tensor, mask: Tensor, lm_vectors: Tensor) -> None:
        """Rescale the last layer so that soft prompts have the mean and the spread of the LM's word embeddings.

        states (batch, source, encoder's width), mask (batch, source), lm_vectors (vocabulary, lm_dim).
        """
        soft = self.map(self.mix(states), mask)
        found = soft.vectors[soft.mask.bool()].float()
        factor = lm_vectors.float().std(dim=0).mean() / found.std(dim=0).mean().clamp(min=1e-6)
        mean = found.mean(dim=0) - self.last.bias
        self.last.weight.mul_(factor)
        self.last.bias.copy_(lm_vectors.float().mean(dim=0) - factor * mean)


class LinearBridge(Bridge):
    """One linear layer with bias (LangBridge, section 3)."""

    def __init__(self, encoder_dim: int, lm_dim: int, *, mixed: int = 1, scale: float = 1.0) -> None:
        super().__init__(encoder_dim, lm_dim, mixed=mixed, scale=scale)
        self.linear = nn.Linear(encoder_dim, lm_dim)
        nn.init.normal_(self.linear.weight, std=scale / encoder_dim**0.5)
        nn.init.zeros_(self.linear.bias)

    @property
    def last(self) -> nn.Linear:
        """The only layer."""
        return self.linear

    def map(self, states: Tensor, mask: Tensor) -> Embeddings:
        """Map each state on its own: (batch, source, lm_dim)."""
        return Embeddings(self.linear(states), mask)


class MLPBridge(Bridge):
    """One or more hidden layers with GELU, `width` times as wide as the encoder (LangBridge, appendix on bridges)."""

    def __init__(
        self, encoder_dim: int, lm_dim: int, *, hidden_layers: int, width: float, mixed: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__(encoder_dim, lm_dim, mixed=mixed, scale=scale)
        hidden = round(encoder_dim * width)
        sizes = [encoder_dim, *[hidden] * hidden_layers]
        parts = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.GELU())]
        self.layers = nn.Sequential(*parts, nn.Linear(sizes[-1], lm_dim))

    @property
    def last(self) -> nn.Linear:
        """The layer behind the last GELU."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def map(self, states: Tensor, mask: Tensor) -> Embeddings:
        """Map each state on its own: (batch, source, lm_dim)."""
        return Embeddings(self.layers(states), mask)


class ResamplerBridge(Bridge):
    """A fixed number of learned latents that attend to the states and to each other (perceiver resampler).

    Sinusoids are added to normed states and to latents, so that a latent can find its place; `output_norm` is a
    LayerNorm in the LM's space behind the last layer.
    """

    def __init__(
        self,
        encoder_dim: int,
        lm_dim: int,
        *,
        latents: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        output_norm: bool = False,
        mixed: int = 1,
        scale: float = 1.0,
    ) -> None:
        super().__init__(encoder_dim, lm_dim, mixed=mixed, scale=scale)
        self.latents = nn.Parameter(0.02 * torch.randn(latents, encoder_dim))
        layer = nn.TransformerDecoderLayer(
            encoder_dim, heads, 4 * encoder_dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, depth, norm=nn.LayerNorm(encoder_dim))
        self.output = nn.Linear(encoder_dim, lm_dim)
        self.norm = nn.LayerNorm(lm_dim) if output_norm else nn.Identity()
        if isinstance(self.norm, nn.LayerNorm):
            nn.init.constant_(self.norm.weight, scale)

    def lengths(self, mask: Tensor) -> Tensor:
        """Return the number of latents and the boundary, whatever the source."""
        return mask.new_full((len(mask),), len(self.latents) + 1)

    @property
    def last(self) -> nn.Linear:
        """The layer from the latents' width to the LM's."""
        return self.output

    def match(self, states: Tensor, mask: Tensor, lm_vectors: Tensor) -> None:
        """Do as every bridge; an output norm sets the statistics itself, whatever lies in front of it."""
        if isinstance(self.norm, nn.LayerNorm):
            with torch.no_grad():
                self.norm.weight.copy_(lm_vectors.float().std(dim=0).mean().expand(self.lm_dim))
                self.norm.bias.copy_(lm_vectors.float().mean(dim=0))
        else:
            super().match(states, mask, lm_vectors)

    def map(self, states: Tensor, mask: Tensor) -> Embeddings:
        """Gather states into (batch, latents, lm_dim), all of it content."""
        batch, count = states.shape[0], len(self.latents)
        queries = (self.latents + sinusoids(count, states)).expand(batch, -1, -1)
        places = PLACES_LOUDER * sinusoids(states.shape[1], states)
        normed = nn.functional.layer_norm(states, states.shape[-1:])
        found = self.decoder(queries, normed + places, memory_key_padding_mask=mask == 0)
        return Embeddings(self.norm(self.output(found)), mask.new_ones(batch, count))


class LayerMix(nn.Module):
    """A learned softmax mix of the encoder's layers, the same for every token; it starts near the last layer alone."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))
        nn.init.constant_(self.logits[-1:], 5.0)  # the embedding layer lets English be read and ruins transfer

    def forward(self, states: Tensor) -> Tensor:
        """Mix (..., layers * dim) into (..., dim)."""
        apart = states.view(*states.shape[:-1], len(self.logits), -1)  # (..., layers, dim)
        mixed: Tensor = torch.einsum("...ld,l->...d", apart, self.logits.softmax(dim=0))
        return mixed


def thinned(mask: Tensor, share: float) -> Tensor:
    """Hide a random share of the content of mask (batch, source); a row that would lose all of it keeps all."""
    kept = mask * (torch.rand(mask.shape, device=mask.device) >= share)
    return torch.where(kept.any(dim=1, keepdim=True), kept, mask)


def sinusoids(length: int, like: Tensor) -> Tensor:
    """Return sine and cosine positions (length, dim) in the type and place of `like` (..., dim)."""
    dim = like.shape[-1]
    rates = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-torch.tensor(10_000.0).log() / dim))
    angles = torch.arange(length, device=like.device)[:, None] * rates  # (length, dim / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim].to(like.dtype)


def make_bridge(config: BridgeConfig, encoder_dim: int, lm_dim: int, *, mixed: int = 1, scale: float = 1.0) -> Bridge:
    """Return the bridge of a recipe with random weights; raises ConfigError where heads do not divide encoder_dim."""
    bridge = _shaped(config, encoder_dim, lm_dim, mixed=mixed, scale=scale)
    bridge.token_dropout = config.token_dropout
    return bridge


def _shaped(config: BridgeConfig, encoder_dim: int, lm_dim: int, *, mixed: int, scale: float) -> Bridge:
    if config.kind == "linear":
        return LinearBridge(encoder_dim, lm_dim, mixed=mixed, scale=scale)
    if config.kind == "mlp":
        layers, width = config.hidden_layers, config.width
        return MLPBridge(encoder_dim, lm_dim, hidden_layers=layers, width=width, mixed=mixed, scale=scale)
    if encoder_dim % config.heads:
        fitting = [heads for heads in range(1, 33) if encoder_dim % heads == 0]
        raise ConfigError(
            f"bridge.heads is {config.heads}, which does not divide the encoder's width {encoder_dim}; "
            f"choose one of {', '.join(map(str, fitting))}."
        )
    return ResamplerBridge(
        encoder_dim,
        lm_dim,
        latents=config.latents,
        depth=config.depth,
        heads=config.heads,
        dropout=config.dropout,
        output_norm=config.output_norm,
        mixed=mixed,
        scale=scale,
    )
