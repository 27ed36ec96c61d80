"""Where the soft prompt sits among the LM's own tokens.

A template is English text of the LM with one slot. The soft prompt (or, for the plain LM, the text itself) fills the
slot; the LM sees its control tokens exactly, the encoder sees only the content.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from langbridge.errors import PromptError

SLOT = "{prompt}"

REPEAT = "Repeat the sentence: "
"""Instruction of the LM under which a sentence is to be said again; training and `transfer` both use it."""

NAMED = {
    # MetaMath's instruction template (LangBridge, section 4; MetaMath model card)
    "metamath": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\n{prompt}\n\n### Response:\n"
    ),
    # Orca 2's ChatML template with a system line of its own
    "orca": (
        "<|im_start|>system\nYou are Orca, an AI language model created by Microsoft. You are a cautious assistant. "
        "You carefully follow instructions. You are helpful and harmless and you follow ethical guidelines and promote "
        "positive behavior.<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ),
    # the same with the system line of the paper's evaluation on choices (XCOPA), and on tasks in steps (BBH)
    "orca_choices": (
        "<|im_start|>system\nYou should describe the task and explain your answer. While answering a multiple choice "
        "question, first output the correct answer(s). Then explain why other answers are wrong. Think like you are "
        "answering to a five year old.<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "orca_steps": (
        "<|im_start|>system\nYou are an AI assistant. User will you give you a task. Your goal is to complete the task "
        "as faithfully as you can. While performing the task think step-by-step and justify your steps.<|im_end|>\n"
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "none": "{prompt}",
}


@dataclass(frozen=True)
class PromptTemplate:
    """LM text before and after the slot."""

    before: str
    after: str

    @classmethod
    def of(cls, name: str, tokenizer: PreTrainedTokenizerBase) -> "PromptTemplate":
        """Return the template called `name`: `chat`, `metamath`, `orca`, `none`, or own text with one `{prompt}`.

        Raises PromptError for an unknown name, text without exactly one slot, and `chat` without a chat template.
        """
        text = _chat(tokenizer) if name == "chat" else NAMED.get(name, name)
        if text.count(SLOT) != 1:
            known = ", ".join(["chat", *NAMED])
            raise PromptError(
                f"template {name!r} is not one of {known} and, as own text, has {text.count(SLOT)} {SLOT} slots; "
                "it needs exactly one."
            )
        return cls(*text.split(SLOT))

    @property
    def text(self) -> str:
        """The whole template, with its slot; `PromptTemplate.of` reads it back."""
        return self.before + SLOT + self.after

    def with_instruction(self, instruction: str) -> "PromptTemplate":
        """Return the template with English text for the LM in front of the slot."""
        return PromptTemplate(self.before + instruction, self.after)

    def before_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return LM tokens in front of the slot, with the LM's begin token where its tokenizer adds one."""
        ids = list(tokenizer(self.before, add_special_tokens=False).input_ids)
        usual = list(tokenizer("").input_ids)  # what the LM's tokenizer puts in front of every text
        bos = tokenizer.bos_token_id
        if bos is not None and usual[:1] == [bos] and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def after_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Return LM tokens behind the slot."""
        return list(tokenizer(self.after, add_special_tokens=False).input_ids)


def _chat(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise PromptError(
            "the LM's tokenizer has no chat template: set prompt.template to metamath, orca, none, or own text with "
            f"one {SLOT}."
        )
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": SLOT}], tokenize=False, add_generation_prompt=True
    )
    if text.count(SLOT) != 1:
        raise PromptError(
            f"the LM's chat template shows a text {text.count(SLOT)} times, wanted exactly one: use own text."
        )
    return text


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `chat` for chat LMs, `none` for others."""
    return "chat" if tokenizer.chat_template else "none"
