"""Try a loaded model on four tokens, so that one that cannot work with a bridge says so now and not by bad answers.

Knows no families: a model is right when it does what the bridge relies on.
"""

import torch
from torch import Tensor

from langbridge.errors import PretrainedError
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel

EXACT, ROUNDED = 1e-3, 0.5
"""Largest differences that are rounding: in fp32, and in half precision or packed (nats, or share of the norm)."""


def check_encoder(name: str, encoder: Encoder) -> None:
    """Raise PretrainedError unless every state depends on every token and none on padding."""
    a, b, c, d = _tokens(len(encoder.model.get_input_embeddings().weight))
    kind = type(encoder.model).__name__
    try:
        with torch.inference_mode():
            alone = encoder(torch.tensor([[a, b, c]]), torch.ones(1, 3, dtype=torch.int64))[0].float()
            rows = torch.tensor([[a, b, c, d, d], [a, b, d, d, d]])
            padded = encoder(rows, torch.tensor([[1, 1, 1, 0, 0]] * 2))[:, :3].float()
    except Exception as error:  # what a foreign forward pass raises is not known; it means: not an encoder for us
        raise PretrainedError(f"{name} ({kind}) cannot be used as an encoder: {_line(error)}") from error
    scale = float(alone.norm())
    if torch.allclose(padded[0, 0], padded[1, 0], rtol=0, atol=1e-7 * scale):
        raise PretrainedError(
            f"{name} ({kind}) is not an encoder: it reads from left to right only, so its first state knows nothing of "
            "the words behind it. Choose mT5, XLM-R, E5, NLLB ..."
        )
    if not float((padded[0] - alone).norm()) <= _rounding(encoder.model) * scale:
        raise PretrainedError(f"{name} ({kind}) cannot be used as an encoder: padding changes what it reads.")


def check_language_model(name: str, language_model: LanguageModel) -> None:
    """Raise PretrainedError unless the LM reads vectors, alone and behind padding, as it reads its own tokens."""
    tokens = _tokens(len(language_model.model.get_input_embeddings().weight)).tolist()
    kind = type(language_model.model).__name__
    device = language_model.device
    ids = torch.tensor([tokens, tokens], device=device)
    mask = torch.tensor([[1, 1], [0, 1]], device=device)
    target_mask = torch.ones_like(mask)
    try:
        with torch.inference_mode():
            wanted = torch.stack([_as_text(language_model, tokens), _as_text(language_model, tokens[1:])])
            prompt = language_model.embed(ids[:, :2], mask)
            whole = language_model.log_likelihood(prompt, ids[:, 2:], target_mask)
            (cached,) = language_model.log_likelihoods(prompt, [(ids[:, 2:], target_mask)])
    except Exception as error:  # as above
        raise PretrainedError(
            f"{name} ({kind}) cannot read soft prompts: {_line(error)}. Choose a causal LM with attention layers and "
            "a key-value cache, such as Llama, Qwen, Mistral, Gemma, Phi, OPT, GPT-2 or GPT-NeoX."
        ) from error
    limit = _rounding(language_model.model)
    for differences, trouble in (
        (whole[0] - wanted[0], "vectors in place of token ids change its answers"),
        (whole[1] - wanted[1], "padding on the left changes its answers"),
        (cached - wanted, "going on from its cache changes its answers"),
    ):
        difference = float(differences.abs().max())
        if not difference <= limit:  # not-a-number is no agreement
            raise PretrainedError(
                f"{name} ({kind}) cannot read soft prompts: {trouble} (log-likelihoods differ by {difference:.2g})."
            )


def _as_text(language_model: LanguageModel, tokens: list[int]) -> Tensor:
    """Return the log-likelihoods of the last two tokens, read the LM's usual way: (2,)."""
    ids = torch.tensor([tokens], device=language_model.device)
    logits = language_model.model(input_ids=ids).logits[0, -3:-1].float()
    found: Tensor = logits.log_softmax(dim=-1).gather(1, ids[0, -2:, None])[:, 0]
    return found


def _tokens(vocabulary: int) -> Tensor:
    """Return four different ids from the middle of a vocabulary, where no control tokens are."""
    return vocabulary // 2 + torch.arange(4)


def _rounding(model: torch.nn.Module) -> float:
    exact = all(p.dtype == torch.float32 for p in model.parameters())
    return EXACT if exact else ROUNDED


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
