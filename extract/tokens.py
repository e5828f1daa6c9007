"""Prompts as token ids, with the utterance's own tokens known exactly: made once, when a run is created (extract.templates).

A continuation is tokenized alone and its ids are appended, so that every utterance is followed by the very same
tokens.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from extract.decoding import Reply


@dataclass(frozen=True, slots=True)
class Prompt:
    """One utterance as the model reads it."""

    ids: tuple[int, ...]
    """Token ids of prompt and continuation, or of prompt and reply."""
    start: int
    """First token of the utterance."""
    stop: int
    """One past the last token of the utterance."""
    prompt_stop: int
    """One past the last token of the prompt; the continuation or the reply follows."""
    truncated: bool = False
    """Whether the utterance lost tokens to the model's context."""


def continued(prompts: Iterable[Prompt], continuation: tuple[int, ...], context: int, truncate: bool) -> Iterator[Prompt | int]:
    """Append a continuation to every prompt, and make it fit the model's context.

    Args:
        continuation: token ids forced after every prompt; may be empty.
        context: the most tokens the model reads at once, less those kept free for a reply.
        truncate: cut the end of utterances that are too long.

    Yields:
        For each prompt the whole one, or the number of tokens it needs where that is more than the context and `truncate` is
        off.
    """
    for prompt in prompts:
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


def replied(prompt: Prompt, reply: Reply) -> Prompt:
    """A prompt with the model's reply after it."""
    return replace(prompt, ids=prompt.ids + reply.ids)


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
