"""The source-language tag that translation encoders (NLLB, mBART) put beside every text."""

import difflib

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from langbridge.errors import PretrainedError


def set_source_language(tokenizer: PreTrainedTokenizerBase, language: str | None, name: str) -> None:
    """Make the tokenizer mark every text as `language`, or, with None, leave the tag out; changes it in place.

    A tokenizer without tags is left alone. Raises PretrainedError for a tag that the tokenizer of `name` lacks.
    """
    if not hasattr(tokenizer, "src_lang"):
        if language is not None:
            raise PretrainedError(
                f"encoder.language is {language!r}, but the tokenizer of {name} has no language tags: set it to null."
            )
        return
    if language is None:
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=["$A", end], pair=["$A", "$B", end], special_tokens=[(end, tokenizer.eos_token_id)]
        )
        return
    tags = list(tokenizer.extra_special_tokens)
    if language not in tags:
        near = difflib.get_close_matches(language, tags, n=3, cutoff=0.4)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(tags[:5])} ..."
        raise PretrainedError(f"encoder.language {language!r} is not a language tag of {name}; {advice}")
    tokenizer.src_lang = language
