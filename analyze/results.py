"""Analyses kept beside the run they are of: `runs/RUN/analysis/NAME.json`, replaced whole when made again."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.query import Run
from extract import durable
from extract.identity import canonical_json, sha256_hex

_Result = TypeVar("_Result")
_PROBE: TypeAdapter[ProbeResult] = TypeAdapter(ProbeResult)
_PERSISTENCE: TypeAdapter[PersistenceResult] = TypeAdapter(PersistenceResult)


def save(run: Run, result: ProbeResult | PersistenceResult) -> None:
    """Keep a result durably under a name made of what it measured."""
    path = run.stored.directory / "analysis" / _name(run, result)
    durable.ensure_directory(path.parent)
    durable.replace(path, json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False).encode())


def probes(run: Run) -> list[ProbeResult]:
    """The probe results kept with a run, by name."""
    return [_parsed(_PROBE, data, name) for name, data in _documents(run, "probe")]


def persistence(run: Run) -> list[PersistenceResult]:
    """The persistence results kept with a run, by name."""
    return [_parsed(_PERSISTENCE, data, name) for name, data in _documents(run, "persistence")]


def _name(run: Run, result: ProbeResult | PersistenceResult) -> str:
    if isinstance(result, PersistenceResult):
        return f"persistence.{result.site}.{result.layer}.{result.kind}.{result.continued_run_id}.json"
    layers = tuple(entry.layer for entry in result.layers)
    which = "all" if layers == run.layers else sha256_hex(canonical_json(layers))[:8]
    return f"probe.{result.site}.{which}.{result.kind}.json"


def _documents(run: Run, kind: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted((run.stored.directory / "analysis").glob(f"{kind}.*.json")):
        yield str(path), path.read_bytes()


def _parsed(adapter: TypeAdapter[_Result], data: bytes, name: str) -> _Result:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise ValueError(f"{name} is damaged or from another version; measure again") from error
