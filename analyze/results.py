"""Analyses kept beside the run they are of: `runs/RUN/analysis/NAME.json`, replaced whole when made again.

A result carries the versions that made it, and only a result of the present versions is used again: after an upgrade it
is measured anew, not shown as if it were current.
"""

import fnmatch
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.query import Run
from extract.documents import now
from extract.identity import canonical_json, sha256_hex

_LIBRARIES = ("affectome", "numpy", "scikit-learn", "scipy")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Kept(Generic[_Result]):
    """A result and what made it."""

    versions: dict[str, str]
    """Versions of the libraries that made it."""
    made: str
    """When, in ISO 8601, UTC."""
    result: _Result
    """The numbers."""


_PROBE: TypeAdapter[Kept[ProbeResult]] = TypeAdapter(Kept[ProbeResult])
_PERSISTENCE: TypeAdapter[Kept[PersistenceResult]] = TypeAdapter(Kept[PersistenceResult])


@cache
def versions() -> dict[str, str]:
    """The versions that a result made now would carry."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def save(run: Run, result: ProbeResult | PersistenceResult) -> None:
    """Keep a result durably under a name made of what it measured."""
    if isinstance(result, ProbeResult):
        document = _PROBE.dump_python(Kept(versions(), now(), result), mode="json")
    else:
        document = _PERSISTENCE.dump_python(Kept(versions(), now(), result), mode="json")
    run.stored.objects.replace(f"analysis/{_name(run, result)}", json.dumps(document, indent=1, allow_nan=False).encode())


def probes(run: Run) -> list[ProbeResult]:
    """The probe results of the present versions kept with a run, by name."""
    return list(_current(run, "probe", _PROBE))


def persistence(run: Run) -> list[PersistenceResult]:
    """The persistence results of the present versions kept with a run, by name."""
    return list(_current(run, "persistence", _PERSISTENCE))


def _name(run: Run, result: ProbeResult | PersistenceResult) -> str:
    if isinstance(result, PersistenceResult):
        return f"persistence.{result.site}.{result.layer}.{result.kind}.{result.continued_run_id}.json"
    layers = tuple(entry.layer for entry in result.layers)
    which = "all" if layers == run.layers_of(result.site) else sha256_hex(canonical_json(layers))[:8]
    return f"probe.{result.site}.{which}.{result.kind}.json"


def _current(run: Run, kind: str, adapter: TypeAdapter[Kept[_Result]]) -> Iterator[_Result]:
    objects = run.stored.objects
    for name in fnmatch.filter(objects.names("analysis"), f"{kind}.*.json"):
        data = objects.read(f"analysis/{name}")
        try:
            if json.loads(data)["versions"] != versions():  # another version's fields may differ: look at nothing else
                continue
            yield adapter.validate_json(data).result
        except (ValidationError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{objects.url(f'analysis/{name}')} is damaged; remove it and measure again") from error
