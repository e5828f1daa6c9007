"""Probes kept as safetensors beside the run they were fitted to, with what made them; and reading new text with one.

A probe keeps weights for raw states, so whoever reads the file needs a matrix product and nothing of affectome:
`logits = states @ weight[layer] + bias[layer]`, in the order of the classes that the file's metadata names. An MLP's are
`relu(states @ weight[layer] + bias[layer]) @ out_weight[layer] + out_bias[layer]`. Of lists of labels they are log-odds, a
label each, and of numbers the number itself.

Shape suffixes: L layers, N utterances, D width, K classes.
"""

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from analyze.columns import LABEL
from analyze.fitting import Probe, read_probabilities
from analyze.linear import LinearProbe
from analyze.mapping import one_thread
from analyze.mlp import MlpProbe
from analyze.moments import Floats
from analyze.multilabel import ProbedSets
from analyze.new_texts import states_of_texts
from analyze.probes import Probed, ProbeSpec
from analyze.query import Run
from analyze.results import probe_name, versions
from analyze.states import states_in
from analyze.valued import ProbedValues
from extract.documents import now

_MADE_OF = "affectome"
_FIRST_BYTES = 1 << 16  # what a file begins with says how long it is; nearly always it is within these
_MOST_BYTES = 100_000_000  # safetensors allows no longer beginning


@dataclass(frozen=True, slots=True)
class Made:
    """What made the probes of a file: its metadata."""

    run_id: str
    """The run they were fitted to."""
    weights: str
    """Identity of the model's weights."""
    model: str
    """What the user called the model."""
    site: str
    """Where the states were read."""
    layers: tuple[int, ...]
    """Which layers, in the order of the tensors."""
    classes: tuple[str, ...]
    """What the columns stand for: classes, labels that may hold together, or the column of numbers."""
    spec: ProbeSpec
    """Which probe."""
    gives: str
    """What the scores are, as in linear.LinearProbe."""
    versions: dict[str, str]
    """Versions of the libraries that made it."""
    made: str
    """When, in ISO 8601, UTC."""


_MADE: TypeAdapter[Made] = TypeAdapter(Made)


def save_probes(run: Run, probed: Probed | ProbedSets | ProbedValues) -> None:
    """Keep probes durably; those of the same run, site, layers and specification are replaced."""
    result, probes = probed.result, probed.probes
    layers = tuple(entry.layer for entry in result.layers)
    manifest = run.manifest
    made = Made(
        run_id=run.run_id,
        weights=manifest.identity.weights,
        model=manifest.model,
        site=result.site,
        layers=layers,
        classes=result.classes,
        spec=result.spec,
        gives=probes[0].gives,
        versions=versions(),
        made=now(),
    )
    data = save(_tensors(probes), {_MADE_OF: json.dumps(asdict(made))})
    run.stored.objects.replace(f"analysis/{probe_name(run, result.site, layers, result.spec)}.safetensors", data)


def load_probes(run: Run, site: str, layers: Sequence[int], spec: ProbeSpec) -> tuple[Made, dict[int, Probe]]:
    """Probes kept with a run, by layer.

    Raises:
        ValueError: there are none, or the file is damaged or another's.
    """
    name = f"analysis/{probe_name(run, site, layers, spec)}.safetensors"
    try:
        data = run.stored.objects.read(name)
    except FileNotFoundError as error:
        which = "" if spec.column == LABEL else f" --label {spec.column}"
        raise ValueError(
            f"run {run.run_id} has no {spec.kind} probes of {site} kept; make them first: "
            f"affectome probe {run.stored.store_location} {run.run_id} --site {site} --kind {spec.kind}{which}"
        ) from error
    try:
        made, tensors = _metadata(data), load(data)
        probes = {layer: _probe(tensors, index, made.gives) for index, layer in enumerate(made.layers)}
    except (SafetensorError, ValidationError, ValueError, LookupError) as error:
        raise ValueError(f"{run.stored.objects.url(name)} is damaged; remove it and make the probes again") from error
    if (made.run_id, made.site, made.layers, made.spec) != (run.run_id, site, tuple(layers), spec):
        raise ValueError(
            f"{run.stored.objects.url(name)} holds other probes than its name says: {made.spec.kind} ones of {made.site} of "
            f"run {made.run_id}; remove it and make the probes again"
        )
    return made, probes


def has_probes(run: Run, site: str, layers: Sequence[int], spec: ProbeSpec) -> bool:
    """Whether there is a file of such probes; reading it says whether it is whole."""
    return run.stored.objects.exists(f"analysis/{probe_name(run, site, layers, spec)}.safetensors")


def kept_probes(run: Run) -> list[tuple[str, Made]]:
    """What made each file of probes kept with a run, with its key; of a file no more is read than says so.

    Raises:
        ValueError: a file is damaged.
    """
    objects, found = run.stored.objects, []
    for name in fnmatch.filter(objects.names("analysis"), "probe.*.safetensors"):
        key = f"analysis/{name}"
        try:
            (start,) = objects.read_ranges(key, [(0, _FIRST_BYTES)])
            n_bytes = 8 + int.from_bytes(start[:8], "little")
            if n_bytes > len(start) == _FIRST_BYTES:
                (start,) = objects.read_ranges(key, [(0, min(n_bytes, _MOST_BYTES))])
            found.append((key, _metadata(start)))
        except (ValidationError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{objects.url(key)} is damaged; remove it and make the probes again") from error
    return found


def predict(run: Run, made: Made, probe: Probe, layer: int, texts: Sequence[str]) -> Floats:
    """What a probe says of new texts, which go through the run's own model with the run's own template and precision.

    Returns:
        (N, K): probabilities, or margins or numbers where the probe gives those.

    Raises:
        ValueError: the probe was fitted to another run, the model is not what it was, or a text cannot be read.
    """
    if made.run_id != run.run_id:
        raise ValueError(f"these probes were fitted to run {made.run_id}, not to {run.run_id}; their weights mean nothing here")
    hidden_ND = states_of_texts(run, made.site, layer, texts)
    with one_thread():  # the same bits on any number of cores
        (said_NK,) = read_probabilities(states_in(hidden_ND), [(probe, np.arange(len(texts)))])
    return said_NK


def _tensors(probes: Sequence[Probe]) -> dict[str, NDArray[Any]]:
    found: dict[str, list[NDArray[Any]]] = {}
    for probe in probes:
        if isinstance(probe, LinearProbe):
            parts: dict[str, NDArray[Any]] = {"weight": probe.weight_DK, "bias": probe.bias_K}
        else:
            parts = {"weight": probe.weight_DH, "bias": probe.bias_H, "out_weight": probe.out_HK, "out_bias": probe.out_K}
        for name, values in parts.items():
            found.setdefault(name, []).append(values)
    return {name: np.ascontiguousarray(np.stack(values)) for name, values in found.items()}  # its bytes are taken as they lie


def _probe(tensors: dict[str, NDArray[Any]], index: int, gives: str) -> Probe:
    weight, bias = tensors["weight"][index], tensors["bias"][index]
    if "out_weight" in tensors:
        return MlpProbe(weight, bias, tensors["out_weight"][index], tensors["out_bias"][index])
    return LinearProbe(weight, bias, gives)


def _metadata(data: bytes) -> Made:
    n_header = int.from_bytes(data[:8], "little")
    return _MADE.validate_json(json.loads(data[8 : 8 + n_header])["__metadata__"][_MADE_OF])
