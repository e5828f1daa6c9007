"""Text to token ids, with the utterance's own tokens known exactly. Done once, when a run is created.

A template puts an utterance into a prompt: `raw` is the text alone, `chat` the model's own chat template with the
utterance as the user's message. Which tokens are the utterance's is read from the tokenizer's character offsets;
searching for the utterance's ids inside the prompt was rejected, because merges across the border change them.

A continuation is tokenized alone and its ids are appended, so that every utterance is followed by the very same
tokens.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

RAW_TEMPLATE = "{{ text }}"
TEMPLATES = ("raw", "chat")
"""Templates known by name."""

_SENTINEL = "\N{LEFT WHITE SQUARE BRACKET}utterance\N{RIGHT WHITE SQUARE BRACKET}"
_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Prompt:
    """One utterance as the model reads it."""

    ids: tuple[int, ...]
    """Token ids of prompt and continuation."""
    start: int
    """First token of the utterance."""
    stop: int
    """One past the last token of the utterance."""
    prompt_stop: int
    """One past the last token of the prompt; the continuation follows."""
    truncated: bool = False
    """Whether the utterance lost tokens to the model's context."""


class Template:
    """How an utterance becomes a prompt for one tokenizer."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Look up a template by name.

        Raises:
            ValueError: there is no such template, or the tokenizer has no chat template or one that does not write
                the message once.
        """
        if name not in TEMPLATES:
            raise ValueError(f"there is no template {name!r}; choose from {', '.join(TEMPLATES)}")
        if name == "chat" and not tokenizer.chat_template:
            raise ValueError("this model's tokenizer has no chat template; use --template raw")
        if not tokenizer.is_fast:
            raise ValueError("this model's tokenizer gives no character offsets (it is not a 'fast' one), which are needed")
        self._name = name
        self._tokenizer = tokenizer
        self._head = self._tail = ""
        if name == "chat":
            parts = self._render(_SENTINEL).split(_SENTINEL)
            if len(parts) != 2:
                raise ValueError(
                    f"the chat template of this model writes a message {len(parts) - 1} times instead of once, "
                    "so where the utterance begins and ends is not known; use --template raw"
                )
            self._head, self._tail = parts

    @property
    def text(self) -> str:
        """What goes into a run's identity: the template, and for a chat template also what it renders to.

        A chat template may write the day's date, which changes the prompt but not the template.
        """
        if self._name == "raw":
            return RAW_TEMPLATE
        return f"{self._tokenizer.chat_template}\n{self._head}{RAW_TEMPLATE}{self._tail}"

    def prompts(self, texts: Sequence[str]) -> Iterator[Prompt]:
        """Tokenize utterances in order, without continuation; an utterance may come out with no tokens of its own."""
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            yield from self._batch(texts[first : first + _TEXTS_AT_ONCE])

    def _batch(self, texts: Sequence[str]) -> Iterator[Prompt]:
        rendered = list(texts) if self._name == "raw" else [self._render(text) for text in texts]
        encoded = self._tokenizer(
            rendered,
            add_special_tokens=self._name == "raw",  # a chat template writes its own; adding them again doubles the BOS
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        columns = zip(rendered, encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        for text, ids, offsets, special in columns:
            begin, end = len(self._head), len(text) - len(self._tail)
            inside = [
                index
                for index, ((left, right), is_special) in enumerate(zip(offsets, special, strict=True))
                if not is_special and left < end and right > begin
            ]
            start, stop = (inside[0], inside[-1] + 1) if inside else (0, 0)
            yield Prompt(tuple(ids), start, stop, len(ids))

    def _render(self, text: str) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(rendered, str)
        return rendered


def tokenize(
    template: Template, texts: Sequence[str], continuation: tuple[int, ...], context: int, truncate: bool
) -> Iterator[Prompt | int]:
    """Make every prompt, with the continuation appended, fit the model's context.

    Args:
        continuation: token ids forced after every prompt; may be empty.
        context: the most tokens the model reads at once.
        truncate: cut the end of utterances that are too long.

    Yields:
        For each text its Prompt, or the number of tokens it needs where that is more than the context and `truncate` is off.
    """
    for prompt in template.prompts(texts):
        whole = replace(prompt, ids=prompt.ids + continuation)
        excess = len(whole.ids) - context
        if excess <= 0:
            yield whole
        elif truncate and excess < prompt.stop - prompt.start:
            cut = prompt.stop - excess
            yield replace(
                whole,
                ids=whole.ids[:cut] + whole.ids[prompt.stop :],
                stop=cut,
                prompt_stop=prompt.prompt_stop - excess,
                truncated=True,
            )
        else:
            yield len(whole.ids)


def offsets_of(prompts: Sequence[Prompt]) -> list[int]:
    """Where each utterance's own tokens begin in an array that holds one after another, and where the last end."""
    return list(itertools.accumulate((prompt.stop - prompt.start for prompt in prompts), initial=0))


def tokens_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over the ids and spans of some prompts, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        spans = (len(prompt.ids), prompt.start, prompt.stop, prompt.prompt_stop, int(prompt.truncated))
        digest.update(np.asarray(spans, "<i8").tobytes())
        digest.update(np.asarray(prompt.ids, "<i8").tobytes())
    return digest.hexdigest()
