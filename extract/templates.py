"""How an utterance becomes a prompt, and which of the prompt's tokens are the utterance's own.

A template is a name (`raw`, `chat`, `few-shot`), a Jinja file, or Jinja itself that writes `{{ text }}` once, perhaps inside of
what it hands to the model's own chat template: `{{ chat("Hello. " ~ text) }}`. What stands before and after the text is read
off by rendering a marker; which tokens are the utterance's is read from the tokenizer's character offsets. Searching for the
utterance's ids inside the prompt was rejected, because merges across the border change them.
"""

import datetime
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from extract.request import DEFAULT_DATE
from extract.tokens import Prompt

RAW, CHAT, FEW_SHOT = "raw", "chat", "few-shot"
NAMES = (RAW, CHAT, FEW_SHOT)
"""Templates known by name: the text alone, the model's own chat template, and seven labelled examples before the text."""

_TEXT = "{{ text }}"
_MARKER = "\N{LEFT WHITE SQUARE BRACKET}utterance\N{RIGHT WHITE SQUARE BRACKET}"
_VARIABLES = ("text", "system", "bos_token", "eos_token", "chat")
_TEXTS_AT_ONCE = 4096
_DATE_FORMS = (*"aAwdbBmyYHIpMSfjUWcxXeFDTRuVGZz", "-d", "-m", "-I", "-H")


class Template:
    """How an utterance becomes a prompt for one tokenizer."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, system: str = "", date: str = DEFAULT_DATE) -> None:
        """Look up a template, and render it once.

        Args:
            name: one of NAMES, a Jinja file, or Jinja that writes `{{ text }}`.
            system: a system prompt, for `chat` and for Jinja that writes `{{ system }}`; may be empty.
            date: the day that a chat template which writes the date is told, in ISO 8601.

        Raises:
            ValueError: there is no such template, it cannot be rendered, does not write the text once, or has no place for a
                system prompt; or the tokenizer has no chat template or gives no character offsets.
        """
        if not tokenizer.is_fast:
            raise ValueError("this model's tokenizer gives no character offsets (it is not a 'fast' one), which are needed")
        self._tokenizer = tokenizer
        self._system = system
        self._date = _parse_date(date)
        self._chat = _dated(tokenizer.get_chat_template(), self._date) if tokenizer.chat_template else ""
        self.source = read_source(name)
        """What makes the template again on any machine: `raw`, `chat`, or Jinja."""
        variables = {CHAT}
        if self.source != CHAT:
            self._jinja, variables = _compile(_TEXT if self.source == RAW else self.source)
        if system and not variables & {CHAT, "system"}:
            raise ValueError(f"template {name!r} has no place for a system prompt; use chat, or Jinja with {{{{ system }}}}")
        through_chat = CHAT in variables
        if through_chat and not tokenizer.chat_template:
            raise ValueError("this model's tokenizer has no chat template; use --template raw")
        self._head, self._tail = self._surroundings(name)
        self._adds_special_tokens = not through_chat and not self._begins_as_the_tokenizer_does()

    @property
    def text(self) -> str:
        """What goes into a run's identity: the template, and what it renders to.

        The same template renders differently with another system prompt or date.
        """
        if self.source == RAW:
            return _TEXT
        source = self._tokenizer.get_chat_template() if self.source == CHAT else self.source
        return f"{source}\n{self._head}{_TEXT}{self._tail}"

    @property
    def before(self) -> str:
        """What stands before the text, the system prompt among it."""
        return self._head

    def prompts(self, texts: Sequence[str]) -> Iterator[Prompt]:
        """Tokenize utterances in order, without continuation; an utterance may come out with no tokens of its own.

        Raises:
            ValueError: the template writes other words around one text than around another.
        """
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            yield from self._batch(texts[first : first + _TEXTS_AT_ONCE])

    def _batch(self, texts: Sequence[str]) -> Iterator[Prompt]:
        rendered = [self._rendered(text) for text in texts]
        encoded = self._tokenizer(
            rendered,
            add_special_tokens=self._adds_special_tokens,
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

    def _rendered(self, text: str) -> str:
        if self.source == RAW:
            return text
        rendered = self._render(text)
        if rendered not in (
            f"{self._head}{written}{self._tail}" for written in (text, text.strip(), text.lstrip(), text.rstrip())
        ):
            raise ValueError(
                f"the template writes other words around {text[:60]!r} than around other texts, so where the utterance begins "
                "and ends is not known; use a template that does not depend on the text"
            )
        return rendered

    def _render(self, text: str) -> str:
        try:
            return self._render_chat(text) if self.source == CHAT else self._render_jinja(text)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the template cannot be rendered: {error}") from error

    def _render_jinja(self, text: str) -> str:
        known = {"bos_token": self._tokenizer.bos_token or "", "eos_token": self._tokenizer.eos_token or ""}
        return str(self._jinja.render(text=text, system=self._system, chat=self._render_chat, **known))

    def _render_chat(self, text: str, **settings: Any) -> str:
        """A user's message through the model's own chat template, with what that may be told, such as `enable_thinking`."""
        messages = [{"role": "system", "content": self._system}] if self._system else []
        rendered = self._tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": text}],
            chat_template=self._chat,
            tokenize=False,
            add_generation_prompt=True,
            date_string=self._date.strftime("%d %b %Y"),
            **settings,
        )
        assert isinstance(rendered, str)
        return rendered

    def _surroundings(self, name: str) -> tuple[str, str]:
        """What stands before and after the text."""
        rendered = self._render(_MARKER)
        parts = rendered.split(_MARKER)
        if len(parts) != 2:
            raise ValueError(
                f"template {name!r} writes the text {len(parts) - 1} times instead of once, "
                "so where the utterance begins and ends is not known; use --template raw"
            )
        if self._system:
            system, self._system = self._system, ""
            alike = self._render(_MARKER) == rendered
            self._system = system
            if alike or system.strip() not in rendered:
                raise ValueError(f"template {name!r} does not write the system prompt, so the model would not see it")
        return parts[0], parts[1]

    def _begins_as_the_tokenizer_does(self) -> bool:
        """Whether the template itself writes what the tokenizer puts first, such as a BOS, which would then be there twice."""
        encoded = self._tokenizer("x", return_special_tokens_mask=True)
        first = self._tokenizer.convert_ids_to_tokens(encoded["input_ids"][:1])
        return bool(encoded["special_tokens_mask"][0]) and self._head.startswith(first[0])


def read_source(name: str) -> str:
    """`raw`, `chat`, or the Jinja of a template."""
    if name in (RAW, CHAT):
        return name
    if name == FEW_SHOT:
        return (resources.files("extract") / "builtin" / "few-shot.jinja").read_text("utf-8")
    if "{{" in name:
        return name
    path = Path(name).expanduser()
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        known = f"{', '.join(NAMES)}, a Jinja file, or Jinja with {_TEXT}"
        raise ValueError(f"there is no template {name!r}; choose from {known}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the template {name}: {error}") from error


def _compile(source: str) -> tuple[Any, set[str]]:
    """The template, and the variables it uses."""
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        compiled = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ValueError(f"the template is not Jinja: {error}") from error
    unknown = sorted(variables - set(_VARIABLES))
    if unknown:
        raise ValueError(f"the template uses {unknown[0]!r}, which is not known; there are {', '.join(_VARIABLES)}")
    return compiled, variables


def _dated(chat_template: str, date: datetime.date) -> str:
    """The chat template with a clock of its own: transformers hands its templates `strftime_now`, and takes no other for it."""
    if "strftime_now" not in chat_template:
        return chat_template
    values = "".join(f" | replace('%{form}', '{date.strftime(f'%{form}')}')" for form in _DATE_FORMS)
    return f"{{% macro strftime_now(format) %}}{{{{ format{values} }}}}{{% endmacro %}}{chat_template}"


def _parse_date(date: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        raise ValueError(f"{date!r} is no date; write it as in {DEFAULT_DATE}") from error
