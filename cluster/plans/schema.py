"""PLAN.yaml: what should be in a store. Read and checked here, before anything is looked up or computed.

A plan says what should exist, never what to do: what is missing is found by looking at the store each time. Every scalar is
read as the text that stands there and turned into what its field wants. YAML's own guesses were rejected, because they read
`1e8` as text, `no` as false and a date as no text.
"""

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo

from cluster.plans.cron import check_expression, check_zone
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.corpus import builtin_bytes, read_passages
from extract.request import DEFAULT_DATE, DEFAULT_SITES
from extract.sites import parse_layers, parse_sites

LATEST = "latest"
"""The revision of a model that stands for the newest commit there is when a plan is refreshed."""

_STRICT = ConfigDict(extra="forbid")  # an unknown field is a mistake that would otherwise mean nothing
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.*?-]+")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_PATH_BEGINNINGS = ("/", "./", "../", "~")
_MANY_LAYERS = 10_000
_NAMED_TEMPLATES = ("raw", "chat", "few-shot")
_LONGEST_NAME = 60
_NULL = "tag:yaml.org,2002:null"


def _beside_the_plan(text: str, info: ValidationInfo) -> str:
    """A path as it counts from the plan's directory; a URL as it is."""
    if not text:
        raise ValueError("is empty; give a path or a URL")
    if "://" in text:
        return text
    try:
        return str((info.context["directory"] / Path(text).expanduser()).resolve()) if info.context else text
    except RuntimeError as error:
        raise ValueError(f"{text!r} begins with a home that is not there; write the path out") from error


def _corpus_path(text: str, info: ValidationInfo) -> str:
    return text if text == BUILTIN_CORPUS else _beside_the_plan(text, info)


def _match(text: str, info: ValidationInfo) -> str:
    if text.startswith(_PATH_BEGINNINGS):
        return _beside_the_plan(text, info)
    if not (_NAME.fullmatch(text) or _HUB_PATTERN.fullmatch(text)):
        raise ValueError(
            f"{text!r} names no models; write an owner and a pattern of the hub such as Qwen/Qwen3-*, a hub id, the name of a "
            "built-in or imported model, or a path that begins with / or ./"
        )
    return text


def _revision(text: str) -> str:
    if text != LATEST and not _COMMIT.fullmatch(text):
        raise ValueError(f"{text!r} is no revision; write latest, or a commit's 40 hex digits")
    return text


def _gated(text: object) -> object:
    return None if text == "any" else text


def _template(text: str, info: ValidationInfo) -> str:
    if text in _NAMED_TEMPLATES or "{{" in text:
        return text
    path = _beside_the_plan(text, info)
    if "{{" not in _read_jinja(path):
        raise ValueError(f"the template {path} does not write {{{{ text }}}}, so no model would see the text")
    return path


def _read_jinja(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = f"{', '.join(_NAMED_TEMPLATES)}, a Jinja file, or Jinja with {{{{ text }}}}"
        raise ValueError(f"cannot read the template {path}; give one of {known}") from error


def _sites(text: str) -> str:
    parse_sites(text)
    return text


def _layers(text: str) -> str:
    if text != "all":
        parse_layers(text, _MANY_LAYERS)
    return text


def _date(text: str) -> str:
    try:
        datetime.date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no date; write it as in {DEFAULT_DATE}") from error
    return text


def _passage(text: str) -> str:
    known = read_passages()["passage_id"].to_pylist()
    if text not in known:
        raise ValueError(f"there is no passage {text!r}; choose from {', '.join(known)}")
    return text


def _or_defaults(value: object) -> object:
    """`probes:` with nothing behind it asks for probes as they are by default."""
    return {} if value is None else value


def _named(field: str) -> Callable[[object], object]:
    """Lets a single text stand for a section with one field."""
    return lambda value: {field: value} if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Schedule:
    """When `affectome schedule` refreshes."""

    __pydantic_config__ = _STRICT
    cron: Annotated[str, AfterValidator(check_expression)]
    """Minute, hour, day, month and day of the week (cluster.plans.cron)."""
    timezone: Annotated[str, AfterValidator(check_zone)]
    """Whose clock, such as Europe/Berlin."""


@dataclass(frozen=True, slots=True)
class CorpusEntry:
    """One corpus."""

    __pydantic_config__ = _STRICT
    path: Annotated[str, AfterValidator(_corpus_path)]
    """`builtin`, a file or a URL; a relative path counts from the plan's directory, here as in every field."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many utterances."""

    def __str__(self) -> str:
        return f"{self.path}, first {self.limit:,}" if self.limit else self.path


@dataclass(frozen=True, slots=True)
class ModelsEntry:
    """Which models: those that a pattern names, or those in a directory, less what the filters leave out."""

    __pydantic_config__ = _STRICT
    match: Annotated[str, AfterValidator(_match)] | None = None
    """`OWNER/PATTERN` of the hub with `*` and `?`, a hub id, a built-in or imported name, or the path of one model."""
    directory: Annotated[str, AfterValidator(_beside_the_plan)] | None = None
    """A directory whose subdirectories are models."""
    revision: Annotated[str, AfterValidator(_revision)] = LATEST
    """`latest`, or a commit of the hub, for a hub id."""
    min_parameters: Annotated[float, Field(gt=0)] | None = None
    """Fewest parameters, as the safetensors files count them."""
    max_parameters: Annotated[float, Field(gt=0)] | None = None
    """Most parameters."""
    gated: Annotated[bool | None, BeforeValidator(_gated)] = False
    """Only models whose owner gives access on request (true), only others (false), or all (None, written `any`)."""
    licenses: tuple[str, ...] = ()
    """Only models of these licenses, as the hub calls them; empty for any."""
    exclude: tuple[str, ...] = ()
    """Patterns of names to leave out, as with `match` without its owner."""

    def __post_init__(self) -> None:
        if (self.match is None) == (self.directory is None):
            raise ValueError("give match or directory, one of the two")
        if self.revision != LATEST and not (self.on_hub and not self.is_pattern):
            raise ValueError("a commit goes with one model of the hub; write it out as match: OWNER/NAME")
        if (self.licenses or self.gated is not False) and not self.on_hub:
            raise ValueError("licenses and gated are known of models on the hub only; take them out")
        named = self.directory is None and (not self.on_hub or self.revision != LATEST)
        if named and (self.exclude or self.licenses or self.min_parameters or self.max_parameters):
            raise ValueError(f"{self.match} is one model, which filters could only take away; take them out")

    @property
    def on_hub(self) -> bool:
        """Whether the hub is asked."""
        return self.match is not None and "/" in self.match and not self.match.startswith("/")

    @property
    def is_pattern(self) -> bool:
        """Whether `match` may stand for several models of the hub."""
        return self.on_hub and any(letter in str(self.match) for letter in "*?")

    def __str__(self) -> str:
        return self.match or str(self.directory)


@dataclass(frozen=True, slots=True)
class TemplateEntry:
    """How utterances become prompts."""

    __pydantic_config__ = _STRICT
    template: Annotated[str, AfterValidator(_template)]
    """`raw`, `chat`, `few-shot`, a Jinja file, or Jinja."""
    system: str = ""
    """System prompt, for templates that have a place for one."""

    def __post_init__(self) -> None:
        if self.system and self.template == "raw":
            raise ValueError("raw has no place for a system prompt; use chat, or Jinja with {{ system }}")

    @property
    def source(self) -> str:
        """What requests take and manifests keep: `raw`, `chat`, or Jinja.

        Raises:
            ValueError: its file cannot be read any more.
        """
        if self.template == "few-shot":
            return builtin_bytes("few-shot.jinja").decode()
        return self.template if self.template in _NAMED_TEMPLATES or "{{" in self.template else _read_jinja(self.template)

    def __str__(self) -> str:
        name = " ".join(self.template.split())
        name = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
        return f"{name}, system prompt {self.system!r}" if self.system else name


@dataclass(frozen=True, slots=True)
class Probes:
    """A probe on every layer of every site that keeps one vector for each utterance."""

    __pydantic_config__ = _STRICT
    kind: Literal["linear", "ridge", "difference", "logistic", "mlp"] = "linear"
    """Kind of probe."""


@dataclass(frozen=True, slots=True)
class Persistence:
    """Persistence at the best layer for `resid.last`."""

    __pydantic_config__ = _STRICT
    per_label: Annotated[int, Field(ge=5)] = 24
    """Most utterances of each label."""
    passage: Annotated[str, AfterValidator(_passage)] = "bus-timetable-route-14"
    """Which built-in neutral passage follows them."""
    kind: Literal["linear", "logistic"] = "linear"
    """Kind of probe, also of the one that finds the best layer."""


@dataclass(frozen=True, slots=True)
class Analyses:
    """What is measured on each finished run."""

    __pydantic_config__ = _STRICT
    probes: Annotated[Probes | None, BeforeValidator(_or_defaults)] = None
    """None for no probes."""
    persistence: Annotated[Persistence | None, BeforeValidator(_or_defaults)] = None
    """None for no persistence."""


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What should be in a store: each of the models, with each of the corpora, in each of the templates, analysed."""

    __pydantic_config__ = _STRICT
    store: Annotated[str, AfterValidator(_beside_the_plan)]
    """The store's directory or URL."""
    corpora: Annotated[
        tuple[Annotated[CorpusEntry, BeforeValidator(_named("path"))], ...],
        Field(min_length=1),
    ]
    """Corpora."""
    models: Annotated[tuple[Annotated[ModelsEntry, BeforeValidator(_named("match"))], ...], Field(min_length=1)]
    """Models."""
    templates: Annotated[
        tuple[Annotated[TemplateEntry, BeforeValidator(_named("template"))], ...],
        Field(min_length=1),
    ] = (TemplateEntry("raw"),)
    """Templates."""
    sites: Annotated[str, AfterValidator(_sites)] = DEFAULT_SITES
    """Comma-separated sites; this and what follows as in extract.request.Request."""
    layers: Annotated[str, AfterValidator(_layers)] = "all"
    """Which layers."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the models."""
    stored_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the store."""
    truncate: bool = False
    """Cut utterances too long for a model instead of refusing them."""
    date: Annotated[str, AfterValidator(_date)] = DEFAULT_DATE
    """The day that a chat template which writes the date is told."""
    compression: Literal["none", "lz4"] = "none"
    """How new runs are compressed."""
    analyses: Annotated[Analyses, BeforeValidator(_or_defaults)] = Analyses()
    """What is measured."""
    schedule: Schedule | None = None
    """When `affectome schedule` refreshes."""

    def __post_init__(self) -> None:
        sites = parse_sites(self.sites)
        if self.analyses.probes and not any(site.pooled for site in sites):
            raise ValueError("probes need a site with one vector for each utterance; add resid.last to sites")
        if self.analyses.persistence and "resid.last" not in map(str, sites):
            raise ValueError("persistence is measured at the best layer for resid.last; add resid.last to sites")


_PLAN: TypeAdapter[PlanFile] = TypeAdapter(PlanFile)
_SECTIONS: dict[tuple[str, ...], type] = {
    (): PlanFile,
    ("schedule",): Schedule,
    ("corpora",): CorpusEntry,
    ("models",): ModelsEntry,
    ("templates",): TemplateEntry,
    ("analyses",): Analyses,
    ("analyses", "probes"): Probes,
    ("analyses", "persistence"): Persistence,
}
"""The type of each section, by the fields that lead to it."""


def read_plan(path: Path) -> PlanFile:
    """Read and check a plan.

    Raises:
        ValueError: there is no such file, it is not YAML, or a field is wrong; the message names the line and the field.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"there is no plan at {path}; docs/plans.md shows one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the plan {path}: {error}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"the plan {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"the plan {path} is no mapping; it begins with lines such as store: emotion (docs/plans.md)")
    try:
        return _PLAN.validate_python(_content(root, path), context={"directory": path.resolve().parent})
    except ValidationError as error:
        raise ValueError(_sentence(path, root, error)) from error
    except RecursionError as error:
        raise ValueError(f"the plan {path} holds an alias of what it stands in; write it out") from error


def _content(node: yaml.Node, path: Path) -> Any:
    """A node as dictionaries, lists and the texts that stand in the file; None where nothing stands."""
    match node:
        case yaml.MappingNode():
            content: dict[str, Any] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise ValueError(f"{path}, line {_line(key)}: a field's name is one word, not a list or mapping")
                if key.value in content:
                    raise ValueError(f"{path}, line {_line(key)}: {key.value} stands there twice; remove one")
                content[str(key.value)] = _content(value, path)
            return content
        case yaml.SequenceNode():
            return [_content(value, path) for value in node.value]
        case _:
            return None if node.tag == _NULL else str(node.value)


def _sentence(path: Path, root: yaml.Node, error: ValidationError) -> str:
    """The first problem: where it is, what it is and what to do. Others may follow from it, as a missing field from a typo."""
    first = min(error.errors(include_url=False), key=lambda each: each["type"] == "missing")
    names = _steps(root, first["loc"])
    where = ".".join(f"[{name}]" if isinstance(name, int) else name for name in names).replace(".[", "[")
    problem = _problem(first["type"], first["msg"], names)
    return f"{path}, line {_line(_find(root, names))}: {where + ': ' if where else ''}{problem}"


def _problem(kind: str, message: str, names: Sequence[str | int]) -> str:
    match kind:
        case "missing":
            return "is missing"
        case "unexpected_keyword_argument":
            section = tuple(name for name in names[:-1] if isinstance(name, str))
            return f"is no field; there are {', '.join(field.name for field in fields(_SECTIONS[section]))}"
        case "too_short":
            return "is empty; name one or more"
        case "tuple_type":
            return "wants a list, a line with a dash in front for each entry"
        case "dataclass_type":
            return "wants fields, each with its value"
        case _:
            return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _steps(root: yaml.Node, location: Sequence[str | int]) -> list[str | int]:
    """Where an error is, as the file has it: a text may stand for a section, whose field is then not in the file."""
    names: list[str | int] = []
    for step in location:
        here = _find(root, names)
        if isinstance(here, yaml.MappingNode) or _find(root, [*names, step]) is not here:
            names.append(step)
    return names


def _find(root: yaml.Node, names: Sequence[str | int]) -> yaml.Node:
    """The node that fields and positions lead to, as far as they lead."""
    node = root
    for name in names:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == name), node)
        elif isinstance(node, yaml.SequenceNode) and isinstance(name, int) and name < len(node.value):
            node = node.value[name]
    return node


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
