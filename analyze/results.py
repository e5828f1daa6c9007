"""Analyses kept beside the run they are of: `runs/RUN/analysis/NAME.json`, replaced whole when made again.

A result carries the versions that made it, and only a result of the present versions is used again: after an upgrade it
is measured anew, not shown as if it were current.
"""

import fnmatch
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from analyze.geometry import GeometryResult
from analyze.multilabel import MultiLabelResult
from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult, ProbeSpec
from analyze.prompting import PromptingResult
from analyze.query import Run
from analyze.transfer import TransferResult
from analyze.valued import ValueResult
from analyze.zeroshot import ZeroShotResult
from extract.documents import now
from extract.identity import canonical_json, sha256_hex

_LIBRARIES = ("affectome", "numpy", "scikit-learn", "scipy", "torch")
_FORM = "3"  # grows when a result's fields change
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Kept(Generic[_Result]):
    """A result and what made it."""

    versions: dict[str, str]
    """Versions of the libraries that made it, and of a result's form."""
    made: str
    """When, in ISO 8601, UTC."""
    result: _Result
    """The numbers."""


Result = (
    ProbeResult
    | MultiLabelResult
    | ValueResult
    | PersistenceResult
    | GeometryResult
    | TransferResult
    | PromptingResult
    | ZeroShotResult
)

_KINDS: dict[type, tuple[str, TypeAdapter[Any]]] = {
    ProbeResult: ("probe", TypeAdapter(Kept[ProbeResult])),
    MultiLabelResult: ("multilabel", TypeAdapter(Kept[MultiLabelResult])),
    ValueResult: ("values", TypeAdapter(Kept[ValueResult])),
    PersistenceResult: ("persistence", TypeAdapter(Kept[PersistenceResult])),
    GeometryResult: ("geometry", TypeAdapter(Kept[GeometryResult])),
    TransferResult: ("transfer", TypeAdapter(Kept[TransferResult])),
    PromptingResult: ("prompting", TypeAdapter(Kept[PromptingResult])),
    ZeroShotResult: ("zero-shot", TypeAdapter(Kept[ZeroShotResult])),
}
"""What the name of each kind of result begins with, and how it is written and read."""


@cache
def versions() -> dict[str, str]:
    """The versions that a result made now would carry."""
    return {"form": _FORM} | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def save(run: Run, result: Result) -> None:
    """Keep a result durably under a name made of what it measured."""
    kind, adapter = _KINDS[type(result)]
    document = adapter.dump_python(Kept(versions(), now(), result), mode="json")
    run.stored.objects.replace(
        f"analysis/{kind}.{_measured(run, result)}.json", json.dumps(document, indent=1, allow_nan=False).encode()
    )


def probes(run: Run) -> list[ProbeResult]:
    """The probe results of the present versions kept with a run, by name."""
    return list(_current(run, ProbeResult))


def multilabels(run: Run) -> list[MultiLabelResult]:
    """The results of probes of lists of labels, of the present versions kept with a run, by name."""
    return list(_current(run, MultiLabelResult))


def values(run: Run) -> list[ValueResult]:
    """The results of probes of numbers, of the present versions kept with a run, by name."""
    return list(_current(run, ValueResult))


def probes_of_any(run: Run) -> list[ProbeResult | MultiLabelResult | ValueResult]:
    """Those of all three: of classes, of lists of labels and of numbers."""
    return [*probes(run), *multilabels(run), *values(run)]


def persistence(run: Run) -> list[PersistenceResult]:
    """The persistence results of the present versions kept with a run, by name."""
    return list(_current(run, PersistenceResult))


def probe_name(run: Run, site: str, layers: Sequence[int], spec: ProbeSpec) -> str:
    """What the files of some probes are called, but for what they end in; the same probes made again have the same name."""
    return f"probe.{_probes_of(run, site, layers, spec)}"


def geometries(run: Run) -> list[GeometryResult]:
    """The geometries of the present versions kept with a run, by name."""
    return list(_current(run, GeometryResult))


def transfers(run: Run) -> list[TransferResult]:
    """The transfers of the present versions kept with a run, by name."""
    return list(_current(run, TransferResult))


def promptings(run: Run) -> list[PromptingResult]:
    """The effects of system prompts of the present versions kept with a run, by name."""
    return list(_current(run, PromptingResult))


def zero_shots(run: Run) -> list[ZeroShotResult]:
    """The zero-shot results of the present versions kept with a run, by name."""
    return list(_current(run, ZeroShotResult))


def _measured(run: Run, result: Result) -> str:
    """What a result is of, for its name."""
    match result:
        case ProbeResult() | MultiLabelResult() | ValueResult():
            return _probes_of(run, result.site, [entry.layer for entry in result.layers], result.spec)
        case PersistenceResult():
            return f"{result.site}.{result.layer}.{result.kind}.{result.continued_run_id}"
        case GeometryResult():
            return f"{result.site}.{_which(run, result.site, [entry.layer for entry in result.layers])}"
        case TransferResult():
            measured = (result.sources, result.run_ids, result.layers, asdict(result.spec))
            return f"{result.site}.{sha256_hex(canonical_json(measured))[:8]}"
        case PromptingResult():
            compared = [(condition.name, run_id) for condition, run_id in zip(result.conditions, result.run_ids, strict=True)]
            return sha256_hex(canonical_json(compared))[:8]
        case ZeroShotResult():
            beside = "" if result.beside is None else f".{result.beside.site}.{result.beside.spec.kind}"
            return f"{result.asked_run_id}{beside}"


def _probes_of(run: Run, site: str, layers: Sequence[int], spec: ProbeSpec) -> str:
    how = "" if spec == ProbeSpec(spec.kind) else f".{sha256_hex(canonical_json(asdict(spec)))[:8]}"
    return f"{site}.{_which(run, site, layers)}.{spec.kind}{how}"


def _which(run: Run, site: str, layers: Sequence[int]) -> str:
    return "all" if tuple(layers) == run.layers_of(site) else sha256_hex(canonical_json(tuple(layers)))[:8]


def _current(run: Run, kind: type[_Result]) -> Iterator[_Result]:
    objects, (begins, adapter) = run.stored.objects, _KINDS[kind]
    for name in fnmatch.filter(objects.names("analysis"), f"{begins}.*.json"):
        data = objects.read(f"analysis/{name}")
        try:
            if json.loads(data)["versions"] != versions():  # another version's fields may differ: look at nothing else
                continue
            kept: Kept[_Result] = adapter.validate_json(data)
            yield kept.result
        except (ValidationError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{objects.url(f'analysis/{name}')} is damaged; remove it and measure again") from error
