"""What a worker takes of a machine or a cluster, and how many there is room for."""

import joblib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.execution import Demand, Execution, demand_here, demand_of, room

NODES = st.lists(
    st.fixed_dictionaries({"CPU": st.sampled_from([0.0, 1.0, 4.0, 16.0, 96.0]), "GPU": st.sampled_from([0.0, 1.0, 4.0, 8.0])}),
    min_size=1,
    max_size=6,
)
HERE = joblib.cpu_count()


@given(NODES, st.sampled_from([None, 0.0, 0.25, 0.5, 1.0, 2.0]))
def test_every_node_that_can_hold_a_worker_holds_as_many_as_its_gpus_or_one_by_its_cpus(
    nodes: list[dict[str, float]], gpus: float | None
) -> None:
    wanted = gpus if gpus is not None else float(any(node["GPU"] for node in nodes))
    able = [node for node in nodes if node["CPU"] >= 1 and node["GPU"] >= wanted]
    if not able:
        with pytest.raises(ValueError, match="say what one takes"):
            demand_of(Execution(address="auto", gpus_per_worker=gpus), nodes)
        return
    demand = demand_of(Execution(address="auto", gpus_per_worker=gpus), nodes)
    assert demand.gpus == wanted
    assert all(demand.fits(node) >= 1 for node in able)
    taken = [demand.fits(node) for node in nodes]
    assert all(n * demand.cpus <= node["CPU"] and n * demand.gpus <= node["GPU"] for n, node in zip(taken, nodes, strict=True))
    assert room(demand, nodes) == sum(taken)


def test_gpus_of_a_node_share_its_cpus() -> None:
    assert demand_of(Execution(address="auto"), [{"CPU": 0}, {"CPU": 96, "GPU": 8}]) == Demand(12, 1.0)
    assert demand_of(Execution(address="auto", gpus_per_worker=2), [{"CPU": 96, "GPU": 8}]) == Demand(24, 2.0)
    assert demand_of(Execution(address="auto", gpus_per_worker=0.5), [{"CPU": 16, "GPU": 1}]) == Demand(8, 0.5)
    assert demand_of(Execution(address="auto"), [{"CPU": 16}, {"CPU": 8}]) == Demand(8, 0.0)


def test_workers_asked_for_share_the_cpus_of_a_cluster_so_that_all_have_room() -> None:
    assert demand_of(Execution(address="auto", workers=4), [{"CPU": 16}]) == Demand(4, 0.0)
    assert demand_of(Execution(address="auto", workers=4), [{"CPU": 64}, {"CPU": 48}]) == Demand(24, 0.0)
    assert demand_of(Execution(address="auto", workers=1), [{"CPU": 64}, {"CPU": 4}]) == Demand(4, 0.0)
    assert demand_of(Execution(address="auto", workers=99), [{"CPU": 4}]) == Demand(1, 0.0)
    assert demand_of(Execution(address="auto", workers=2), [{"CPU": 16, "GPU": 4}]) == Demand(4, 1.0)


@given(NODES, st.integers(1, 40))
def test_there_is_room_for_the_workers_asked_for_wherever_one_cpu_each_would_do(
    nodes: list[dict[str, float]], workers: int
) -> None:
    nodes = [{"CPU": node["CPU"]} for node in nodes]
    if not any(node["CPU"] for node in nodes):
        return
    demand = demand_of(Execution(address="auto", workers=workers), nodes)
    assert room(demand, nodes) >= min(workers, sum(int(node["CPU"]) for node in nodes))
    smallest = min(node["CPU"] for node in nodes if node["CPU"])
    assert demand.cpus == smallest or room(Demand(demand.cpus + 1, 0.0), nodes) < workers


def test_workers_here_share_the_processors() -> None:
    assert demand_here(Execution(workers=1), 0) == (1, Demand(HERE, 0.0))
    assert demand_here(Execution(workers=2 * HERE), 0) == (2 * HERE, Demand(1, 0.0))
    assert demand_here(Execution(workers=3, cpus_per_worker=5), 0) == (3, Demand(5, 0.0))


def test_gpus_here_are_taken_one_each_unless_said_otherwise() -> None:
    assert demand_here(Execution(), 4)[0] == 4
    assert demand_here(Execution(gpus_per_worker=0.5), 4)[0] == 8
    assert demand_here(Execution(gpus_per_worker=2), 4)[0] == 2
    assert demand_here(Execution(workers=1), 4) == (1, Demand(HERE, 1.0))
    with pytest.raises(ValueError, match="8 workers with 1 GPU each need 8, and this machine has 4"):
        demand_here(Execution(workers=8), 4)


@pytest.mark.parametrize("options", [{"workers": 0}, {"cpus_per_worker": 0}, {"gpus_per_worker": 1.5}, {"gpus_per_worker": -1}])
def test_what_cannot_be_is_refused_with_the_option_named(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match="--" + name.replace("_", "-")):
        Execution(**options)  # type: ignore[arg-type]
