"""Tiny random models of every family that LangBridge is tested with, as publishers save them."""

from collections.abc import Callable

import torch
import transformers as hf
from transformers import PreTrainedModel

from conftest import LETTERS, SHAPE, gpt2, llama, mt5, qwen2

Builder = Callable[[], PreTrainedModel]

SEQ2SEQ = {"vocab_size": len(LETTERS), "d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BERT = {**SHAPE, "intermediate_size": 32, "max_position_embeddings": 202}
ROTARY = {**SHAPE, "intermediate_size": 32, "max_position_embeddings": 256}
GROUPED = {**ROTARY, "num_key_value_heads": 1, "head_dim": 8}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = 7
"""Positions that a sliding-window layer sees: fewer than the prompts of the tests have."""


def t5() -> PreTrainedModel:
    return hf.T5ForConditionalGeneration(hf.T5Config(**SEQ2SEQ))


def umt5() -> PreTrainedModel:
    return hf.UMT5ForConditionalGeneration(hf.UMT5Config(**SEQ2SEQ))


def t5gemma() -> PreTrainedModel:
    half = {**GROUPED, **ENDS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
    return hf.T5GemmaForConditionalGeneration(hf.T5GemmaConfig(encoder=half, decoder=half, vocab_size=len(LETTERS)))


def bert() -> PreTrainedModel:
    return hf.BertForMaskedLM(hf.BertConfig(**BERT))


def xlm_r() -> PreTrainedModel:
    return hf.XLMRobertaForMaskedLM(hf.XLMRobertaConfig(**BERT, type_vocab_size=1, **ENDS))


def modernbert() -> PreTrainedModel:
    local = {"local_attention": 8, "global_attn_every_n_layers": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return hf.ModernBertForMaskedLM(hf.ModernBertConfig(**BERT, **local, **ends))


def eurobert() -> PreTrainedModel:
    return hf.EuroBertForMaskedLM(hf.EuroBertConfig(**ROTARY, **ENDS, num_key_value_heads=1))


def m2m100() -> PreTrainedModel:
    config = hf.M2M100Config(
        vocab_size=len(LETTERS),
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=200,
        **ENDS,
    )
    return hf.M2M100ForConditionalGeneration(config)


def mistral() -> PreTrainedModel:
    return hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=WINDOW))


def qwen3() -> PreTrainedModel:
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED))


def gemma2() -> PreTrainedModel:
    caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, **ENDS, **caps, sliding_window=WINDOW))


def gemma3() -> PreTrainedModel:
    layers = ["sliding_attention", "full_attention"]
    return hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**GROUPED, **ENDS, query_pre_attn_scalar=8, sliding_window=WINDOW, layer_types=layers)
    )


def phi() -> PreTrainedModel:
    return hf.PhiForCausalLM(hf.PhiConfig(**ROTARY, **ENDS))


def opt() -> PreTrainedModel:
    """Word embeddings of another width than the layers, as opt-350m has."""
    return hf.OPTForCausalLM(
        hf.OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=256, **ENDS)
    )


def gpt_neox() -> PreTrainedModel:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**ROTARY, **ENDS))


def granite() -> PreTrainedModel:
    """Scales the embeddings behind `inputs_embeds`, and the logits behind the head."""
    scales = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
    return hf.GraniteForCausalLM(hf.GraniteConfig(**ROTARY, **ENDS, **scales))


def bloom() -> PreTrainedModel:
    """Takes no positions: it counts them from the mask."""
    return hf.BloomForCausalLM(hf.BloomConfig(vocab_size=len(LETTERS), hidden_size=24, n_layer=2, n_head=2, **ENDS))


ENCODERS: dict[str, Builder] = {
    "T5": t5,
    "mT5": mt5,
    "umT5": umt5,
    "T5Gemma": t5gemma,
    "BERT": bert,
    "XLM-R": xlm_r,
    "ModernBERT": modernbert,
    "EuroBERT": eurobert,
    "M2M100": m2m100,
}
LANGUAGE_MODELS: dict[str, Builder] = {
    "Llama": llama,
    "Mistral": mistral,
    "Qwen2": qwen2,
    "Qwen3": qwen3,
    "Gemma2": gemma2,
    "Gemma3": gemma3,
    "Phi": phi,
    "OPT": opt,
    "GPT-2": gpt2,
    "GPT-NeoX": gpt_neox,
    "Granite": granite,
    "BLOOM": bloom,
}


def make(builder: Builder) -> PreTrainedModel:
    """Build a model whose weights are larger than the usual 0.02, so that answers depend on prompts."""
    torch.manual_seed(0)
    model = builder()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


PAIRS = [
    (encoder, lm)
    for turn, lm in enumerate(LANGUAGE_MODELS)
    for encoder in (list(ENCODERS)[turn % len(ENCODERS)], list(ENCODERS)[(turn + 4) % len(ENCODERS)])
]
"""(encoder, LM) that run through every check: each LM with two encoders, each encoder with two or more LMs."""


def encoder_half(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a whole model that reads, by the library's own account."""
    return model.get_encoder() if model.config.is_encoder_decoder else model.base_model


def table() -> str:
    """Return the published matrix: LMs down, encoders across."""
    head = f"| | {' | '.join(ENCODERS)} |\n|---|{'---|' * len(ENCODERS)}\n"
    rows = [
        f"| {lm} | {' | '.join('x' if (encoder, lm) in PAIRS else '' for encoder in ENCODERS)} |\n"
        for lm in LANGUAGE_MODELS
    ]
    return head + "".join(rows)
