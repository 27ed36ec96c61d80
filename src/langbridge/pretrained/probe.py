"""Try a loaded model on four tokens, so that one that cannot work with a bridge says so now and not by bad answers.

Knows no families: a model is right when it does what the bridge relies on.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from langbridge.errors import PretrainedError
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel

EXACT, ROUNDED = 1e-3, 0.5
"""Largest differences that are rounding: in fp32, and in half precision or packed (nats, or share of the norm)."""

ADVICE = (
    "Choose a causal LM with attention layers and a key-value cache, such as Llama, Qwen, Mistral, Gemma, Phi, OPT, "
    "GPT-2 or GPT-NeoX."
)


def check_encoder(name: str, encoder: Encoder) -> None:
    """Raise PretrainedError unless every state depends on every token and none on padding."""
    kind = type(encoder.model).__name__
    try:
        a, b, c, d = _tokens(encoder.model)
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
    found = f"{name} ({type(language_model.model).__name__}) cannot read soft prompts"
    try:
        with torch.inference_mode():
            differences = _differences(language_model)
    except Exception as error:  # as above
        raise PretrainedError(f"{found}: {_line(error)}. {ADVICE}") from error
    for trouble, difference in differences.items():
        if not difference <= _rounding(language_model.model):  # not-a-number is no agreement
            raise PretrainedError(f"{found}: {trouble} (log-likelihoods differ by {difference:.2g}). {ADVICE}")


def _differences(language_model: LanguageModel) -> dict[str, float]:
    """Return how far the LM is from itself, read in ways that should agree: trouble -> nats.

    Stops at an LM that reads ahead, as the ways behind that one are not made for it.
    """
    a, b, c, d = _tokens(language_model.model)
    wanted = torch.stack([_as_text(language_model, [a, b, c, d]), _as_text(language_model, [b, c, d])])
    other_end = _as_text(language_model, [a, b, c, a])
    ahead = float((other_end[0] - wanted[0, 0]).abs())
    troubles = {"it reads ahead, so it is no causal LM": ahead}
    if not ahead <= _rounding(language_model.model):
        return troubles
    device = language_model.device
    targets = torch.tensor([[c, d], [c, d]], device=device)
    everything = torch.ones_like(targets)
    mask = torch.tensor([[1, 1], [0, 1]], device=device)
    prompt = language_model.embed(torch.tensor([[a, b], [a, b]], device=device), mask)
    whole = language_model.log_likelihood(prompt, targets, everything) - wanted
    (cached,) = language_model.log_likelihoods(prompt, [(targets, everything)])
    return troubles | {
        "vectors in place of token ids change its answers": float(whole.abs().max()),
        "going on from its cache changes its answers": float((cached - wanted)[0].abs().max()),
        "padding on the left changes its answers": float((cached - wanted)[1].abs().max()),
    }


def _as_text(language_model: LanguageModel, tokens: list[int]) -> Tensor:
    """Return the log-likelihoods of the last two tokens, read the LM's usual way: (2,)."""
    ids = torch.tensor([tokens], device=language_model.device)
    logits = language_model.model(input_ids=ids).logits[0, -3:-1].float()
    found: Tensor = logits.log_softmax(dim=-1).gather(1, ids[0, -2:, None])[:, 0]
    return found


def _tokens(model: PreTrainedModel) -> list[int]:
    """Return four different ids from the middle of the vocabulary, where no control tokens are."""
    middle = len(model.get_input_embeddings().weight) // 2
    return list(range(middle, middle + 4))


def _rounding(model: PreTrainedModel) -> float:
    exact = all(p.dtype == torch.float32 for p in model.parameters())
    return EXACT if exact else ROUNDED


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
