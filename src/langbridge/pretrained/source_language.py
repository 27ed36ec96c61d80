"""The source-language tag that translation encoders (NLLB, mBART) put beside every text."""

import difflib

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from langbridge.errors import PretrainedError


def with_source_language(
    tokenizer: PreTrainedTokenizerBase, language: str | None, name: str
) -> PreTrainedTokenizerBase:
    """Return a tokenizer that marks every text as `language`, or, with None, one that leaves the tag out.

    A tokenizer without tags is returned as it is. Raises PretrainedError for a tag that the tokenizer of `name` lacks.
    """
    if not hasattr(tokenizer, "src_lang"):
        if language is not None:
            raise PretrainedError(
                f"encoder.language is {language!r}, but the tokenizer of {name} has no language tags: set it to null."
            )
        return tokenizer
    if language is None:
        return _without_tag(tokenizer)
    tags = list(tokenizer.extra_special_tokens)
    if language not in tags:
        near = difflib.get_close_matches(language, tags, n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(tags[:5])} ..."
        raise PretrainedError(f"encoder.language {language!r} is not a language tag of {name}; {advice}")
    tokenizer.src_lang = language
    return tokenizer


def _without_tag(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a plain tokenizer of the same pieces: the class of translation models sets its tag again at each call."""
    end = tokenizer.eos_token
    pieces = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    pieces.post_processor = TemplateProcessing(
        single=["$A", end], pair=["$A", "$B", end], special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=tokenizer.model_max_length, **tokenizer.special_tokens_map
    )
