"""Analyses as Ray tasks: the numbers of one process, bit for bit."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pytest

from analyze.fitting import KINDS, Probe
from analyze.mapping import Mapper, in_threads
from analyze.multilabel import probe_sets
from analyze.persistence import measure_persistence
from analyze.probes import ProbeSpec, probe_layers
from analyze.valued import probe_values
from cluster.execution import Execution
from cluster.mapping import mapper_of
from tests.analyze.conftest import Plant, plant
from tests.analyze.test_persistence import planted_run

__all__ = ["plant"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # Ray leaves sockets open at its end
]


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Mapper]:
    """Two workers on a Ray that is started for this file."""
    with mapper_of(Execution(workers=2, cpus_per_worker=1)) as mapper:
        assert mapper is not in_threads
        yield mapper


def bits_of(probe: Probe) -> dict[str, object]:
    """A probe's numbers as bytes; a pickle also tells which of its parts are one object."""
    parts = ((field.name, getattr(probe, field.name)) for field in fields(probe))
    return {name: part if isinstance(part, str) else (part.shape, part.dtype, part.tobytes()) for name, part in parts}


@pytest.mark.parametrize("kind", KINDS)
def test_probes_of_all_layers_are_the_same_bits(plant: Plant, on_ray: Mapper, kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(300) % 3)
    hidden = rng.standard_normal((4, 300, 24)) + np.arange(4)[:, None, None] * np.eye(3, 24)[labels]
    run = plant(hidden.astype(np.float32), {"label": [str(label) for label in labels]})
    done: list[int] = []
    found = probe_layers(run, "resid.last", run.layers, ProbeSpec(kind), done.append, on_ray)
    here = probe_layers(run, "resid.last", run.layers, ProbeSpec(kind))
    assert found.result == here.result
    for one, other in zip(found.probes, here.probes, strict=True):
        assert bits_of(one) == bits_of(other)
    assert sum(done) == 4


def test_probes_of_lists_and_numbers_are_the_same_bits(plant: Plant, on_ray: Mapper) -> None:
    rng = np.random.default_rng(0)
    has = rng.random((200, 2)) < 0.4
    hidden = rng.standard_normal((3, 200, 16)) + has @ rng.standard_normal((2, 16))
    lists = [[name for name, mine in zip(("fear", "joy"), row, strict=True) if mine] for row in has.tolist()]
    run = plant(hidden.astype(np.float32), {"labels": lists, "valence": rng.standard_normal(200).tolist()})
    for kind in ("linear", "logistic"):
        spec = ProbeSpec(kind, column="labels")
        sets, sets_here = (probe_sets(run, "resid.last", run.layers, spec, mapper=mapper) for mapper in (on_ray, in_threads))
        assert sets.result == sets_here.result
        assert [bits_of(probe) for probe in sets.probes] == [bits_of(probe) for probe in sets_here.probes]
    spec = ProbeSpec("ridge", column="valence")
    values, values_here = (probe_values(run, "resid.last", run.layers, spec, mapper=mapper) for mapper in (on_ray, in_threads))
    assert values.result == values_here.result
    assert [bits_of(probe) for probe in values.probes] == [bits_of(probe) for probe in values_here.probes]


def test_persistence_is_the_same_bits(plant: Plant, on_ray: Mapper) -> None:
    run = planted_run(plant, 1, rotates=True)
    assert measure_persistence(run, run, 0, mapper=on_ray) == measure_persistence(run, run, 0)


def test_a_notebook_that_has_imported_ray_before_gets_its_own_all_the_same() -> None:
    program = (
        "import ray; from cluster.execution import Execution; from cluster.mapping import mapper_of; import sys\n"
        "for _ in range(2):\n"
        "    with mapper_of(Execution(workers=1)) as mapper: found = mapper(abs, [-3, 2])\n"
        "    print(found, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.stderr.count("[3, 2]") == 2, done.stderr


def test_what_a_task_raises_is_raised_here(on_ray: Mapper) -> None:
    def refuse(item: int) -> int:
        raise ValueError(f"no {item}")

    with pytest.raises(ValueError, match="no 1"):
        on_ray(refuse, [1])


def test_results_come_in_the_order_of_the_items(on_ray: Mapper) -> None:
    items = list(range(40))
    assert on_ray(lambda item: item * item, items) == in_threads(lambda item: item * item, items)
