"""The models of a plan: patterns to concrete models, each pinned to a commit or to the digest of its weights.

The hub is asked for metadata only; no file of a model is fetched here. What a pattern names and a filter leaves out is told
with its reason, so that nobody wonders why a model does not appear.
"""

import fnmatch
import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError

from cluster.plans.schema import LATEST, ModelsEntry
from extract.models import Model, find_model, models_directory
from extract.packages import PACKAGED

_FACTS: list[Any] = ["sha", "gated", "disabled", "safetensors", "siblings", "cardData", "tags"]
_TIMEOUT_SECONDS = 60.0
_HEADER_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library accepts."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model that a plan names, pinned."""

    name: str
    """What extract.models.find_model takes: `OWNER/NAME@COMMIT`, a path, or the name of an imported model."""
    weights: str | None
    """The identity its runs have (extract.identity.Identity.weights); None while the weights are not on this machine."""
    tokenizer: str | None = None
    """Digest of a local model's tokenizer; None on the hub, where the commit stands for it."""

    @property
    def title(self) -> str:
        """Its name without what it is pinned to."""
        return self.name.partition("@")[0] if self.on_hub else self.name

    @property
    def revision(self) -> str | None:
        """The commit, or the beginning of the digest of its weights."""
        if self.weights is None:
            return None
        return self.weights.rpartition("@")[2] if self.on_hub else self.weights[: len("sha256:") + 12]

    @property
    def on_hub(self) -> bool:
        """Whether it comes from the hub."""
        return self.weights is not None and self.weights.startswith("hub:")


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A model, or all that one entry of a plan names, that is not taken."""

    name: str
    """Which."""
    reason: str
    """Why, in a sentence."""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the entries of a plan come to today."""

    found: tuple[PlannedModel, ...]
    """Models, in the plan's order and without repeats."""
    left_out: tuple[PassedOver, ...]
    """What the filters take away."""
    failed: tuple[PassedOver, ...]
    """What could not be found out."""


def resolve(entries: Sequence[ModelsEntry], hub: HfApi | None = None) -> Resolution:
    """Find the models that the entries name.

    An entry that fails, because the hub is down or a directory is missing, does not stop the others.

    Args:
        hub: the client to ask; the default one where there is none.
    """
    found: dict[str, PlannedModel] = {}
    left_out: dict[str, PassedOver] = {}
    failed = []
    for entry in entries:
        try:
            for model in _resolve_entry(entry, hub):
                if isinstance(model, PlannedModel):
                    found.setdefault(model.name, model)
                else:
                    left_out.setdefault(model.name, model)
        except ValueError as error:
            failed.append(PassedOver(str(entry), str(error)))
    taken = {model.title for model in found.values()}
    return Resolution(tuple(found.values()), tuple(each for each in left_out.values() if each.name not in taken), tuple(failed))


def _resolve_entry(entry: ModelsEntry, hub: HfApi | None) -> Iterator[PlannedModel | PassedOver]:
    if entry.directory is not None:
        yield from _in_directory(entry, Path(entry.directory))
    elif entry.on_hub:
        yield from _on_hub(entry, hub)
    else:
        yield _named(str(entry.match))


# On the hub.


def _on_hub(entry: ModelsEntry, hub: HfApi | None) -> Iterator[PlannedModel | PassedOver]:
    if entry.revision != LATEST:  # all that is to be known of it, so that it works without a network
        yield _at_commit(str(entry.match), entry.revision)
        return
    for info in _ask(entry, hub or HfApi()):
        reason = _why_not(info, entry)
        yield _at_commit(info.id, str(info.sha)) if reason is None else PassedOver(info.id, reason)


def _at_commit(repository: str, commit: str) -> PlannedModel:
    return PlannedModel(f"{repository}@{commit}", f"hub:{repository}@{commit}")


def _ask(entry: ModelsEntry, hub: HfApi) -> list[ModelInfo]:
    """What the hub knows of the models that an entry names, by name."""
    owner, _, name = str(entry.match).partition("/")
    _give_up_in_time()
    try:
        if not entry.is_pattern:
            return [hub.model_info(str(entry.match), expand=_FACTS, timeout=_TIMEOUT_SECONDS)]
        listed = hub.list_models(author=owner, search=_longest_literal(name) or None, expand=_FACTS)
        infos = [info for info in listed if fnmatch.fnmatchcase(info.id, str(entry.match))]
    except RepositoryNotFoundError as error:
        raise ValueError(f"the hub has no model {entry.match!r}, or it is private; check the name and your token") from error
    except Exception as error:  # the hub client's transport errors differ from version to version; all mean the same here
        raise ValueError(f"cannot ask the hub for {entry.match!r}: {_first_line(error)}; refresh when it answers") from error
    if not infos:
        raise ValueError(f"the hub has no model that {entry.match!r} names; check the owner and the pattern")
    return sorted(infos, key=lambda info: info.id)


def _why_not(info: ModelInfo, entry: ModelsEntry) -> str | None:
    """Why a model of the hub is not taken; None where it is."""
    if _excluded(info.id, entry):
        return "the plan excludes it"
    if info.disabled:
        return "its owner or the hub has disabled it"
    if entry.gated is not None and bool(info.gated) != entry.gated:
        return "gated: ask for access on its page, then write gated: any" if info.gated else "not gated"
    files = [file.rfilename for file in info.siblings or []]
    if not any(re.fullmatch(r"[^/]+\.safetensors", name) for name in files):
        return "has no safetensors"
    return _wrong_size(info.safetensors.total if info.safetensors else None, entry) or _wrong_license(info, entry)


def _wrong_license(info: ModelInfo, entry: ModelsEntry) -> str | None:
    if not entry.licenses:
        return None
    named = info.card_data.license if info.card_data else None
    licenses = {named} if isinstance(named, str) else set(named or ())
    licenses |= {tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")}
    if {name.lower() for name in licenses} & {name.lower() for name in entry.licenses}:
        return None
    return f"license {', '.join(sorted(licenses))}" if licenses else "names no license"


def _longest_literal(pattern: str) -> str:
    return max(re.split(r"[*?]", pattern), key=len)


def _give_up_in_time() -> None:
    """Have every request to the hub end: its client waits forever for a server that takes a connection and says nothing."""
    session: Any = huggingface_hub.get_session()
    hooks = session.event_hooks
    if _limit_time not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _limit_time]}


def _limit_time(request: Any) -> None:
    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        step: _TIMEOUT_SECONDS if limits.get(step) is None else limits[step] for step in ("connect", "read", "write", "pool")
    }


# On this machine.


def _in_directory(entry: ModelsEntry, directory: Path) -> Iterator[PlannedModel | PassedOver]:
    try:
        below = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"cannot look into {directory}: {error.strerror}; check the path") from error
    for path in below:
        yield _judge_directory(entry, path)


def _judge_directory(entry: ModelsEntry, path: Path) -> PlannedModel | PassedOver:
    if _excluded(path.name, entry):
        return PassedOver(str(path), "the plan excludes it")
    try:
        model = find_model(str(path))
    except ValueError as error:
        return PassedOver(str(path), str(error))
    if entry.min_parameters is not None or entry.max_parameters is not None:
        reason = _wrong_size(count_parameters(path), entry)
        if reason is not None:
            return PassedOver(str(path), reason)
    return _local(model)


def _named(name: str) -> PlannedModel:
    """An imported model, one of a package, or one in a directory of its own."""
    packaged = PACKAGED.get(name)
    if packaged is not None and packaged.sha256 and not (models_directory() / name / "config.json").is_file():
        return PlannedModel(name, None)  # importing it is work, and this only looks
    return _local(find_model(name))


def _local(model: Model) -> PlannedModel:
    return PlannedModel(model.name, model.weights_identity, model.tokenizer_digest)


def count_parameters(directory: Path) -> int:
    """Elements of all tensors in a directory's safetensors files, from their headers.

    Raises:
        ValueError: a header cannot be read.
    """
    return sum(_elements(path) for path in sorted(directory.glob("*.safetensors")))


def _elements(path: Path) -> int:
    try:
        with path.open("rb") as file:
            (length,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
            if length > _LARGEST_HEADER:
                raise ValueError("it is too long")
            header = json.loads(file.read(length))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the header of {path} cannot be read: {error}; get the file again") from error


# Both.


def _excluded(name: str, entry: ModelsEntry) -> bool:
    """Whether a pattern matches the name, with its owner or without."""
    return any(fnmatch.fnmatchcase(each, pattern) for each in (name, name.rpartition("/")[2]) for pattern in entry.exclude)


def _wrong_size(n_parameters: int | None, entry: ModelsEntry) -> str | None:
    low, high = entry.min_parameters or 0.0, entry.max_parameters or math.inf
    if low == 0.0 and high == math.inf:
        return None
    if n_parameters is None:
        return "the hub does not say how many parameters it has"
    if low <= n_parameters <= high:
        return None
    return f"{n_parameters:,} parameters, {'fewer' if n_parameters < low else 'more'} than the plan wants"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
