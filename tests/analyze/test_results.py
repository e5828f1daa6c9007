"""Results that were saved are read back as they were, or refused in one sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyze import results
from analyze.curves import HalfLife
from analyze.fitting import KINDS
from analyze.persistence import PersistenceResult, measure_persistence
from analyze.probes import ProbeResult, ProbeSpec, probe_layers
from analyze.query import Run
from tests.analyze.conftest import Plant


def new_run(plant: Plant) -> Run:
    states = np.random.default_rng(0).standard_normal((2, 40, 3)).astype(np.float32)
    return plant(states, {"label": ["joy", "fear"] * 20})


@pytest.fixture(scope="module")
def probe(plant: Plant) -> ProbeResult:
    run = new_run(plant)
    return probe_layers(run, "resid.last", run.layers).result


@pytest.fixture(scope="module")
def persistence(plant: Plant) -> PersistenceResult:
    states = np.random.default_rng(0).standard_normal((1, 40, 3, 3)).astype(np.float32)
    run = plant(states, {"label": ["joy", "fear"] * 20}, offsets=(0, 1, 4))
    return measure_persistence(run, run, 0)


@pytest.fixture
def run(plant: Plant) -> Run:
    """A run without results."""
    return new_run(plant)


def kept_files(run: Run) -> list[Path]:
    return [path for path in Path(run.stored.objects.url("analysis")).glob("*") if path.is_file()]


def test_a_run_without_analyses_has_none(run: Run) -> None:
    assert results.probes(run) == []
    assert results.persistence(run) == []


def test_what_is_saved_is_read_back_equal(run: Run, probe: ProbeResult, persistence: PersistenceResult) -> None:
    results.save(run, probe)
    results.save(run, persistence)
    assert results.probes(run) == [probe]
    assert results.persistence(run) == [persistence]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.floats(0, 1), st.none() | st.floats(0, 400))
def test_any_label_and_any_number_comes_back_as_it_was(
    run: Run, probe: ProbeResult, persistence: PersistenceResult, label: str, chance: float, tokens: float | None
) -> None:
    curves = tuple(
        replace(curve, emotion=label, half_life=HalfLife(tokens, None, tokens, True)) for curve in persistence.curves
    )
    changed = replace(probe, classes=(label, "joy"), chance=chance), replace(persistence, curves=curves)
    for result in changed:
        results.save(run, result)
    assert (results.probes(run), results.persistence(run)) == ([changed[0]], [changed[1]])


def test_results_of_other_sites_and_kinds_stand_side_by_side_and_the_same_one_is_replaced(run: Run, probe: ProbeResult) -> None:
    saved = [replace(probe, site=site, spec=ProbeSpec(kind)) for site in ("resid.last", "resid.mean") for kind in KINDS]
    for result in saved:
        results.save(run, result)
    again = replace(saved[0], n_test=999)
    results.save(run, again)
    kept = sorted(results.probes(run), key=lambda result: (result.site, KINDS.index(result.kind)))
    assert kept == [again, *saved[1:]]
    assert len(kept_files(run)) == len(saved)


def test_probes_of_other_layers_stand_side_by_side_whatever_the_file_is_called(run: Run, probe: ProbeResult) -> None:
    saved = [probe, *(replace(probe, layers=(entry,), best_layer=entry.layer) for entry in probe.layers)]
    for result in [*saved, *saved]:
        results.save(run, result)
    kept = results.probes(run)
    assert len(kept) == len(saved) == 3
    assert all(result in kept for result in saved)


def test_persistence_of_two_continuations_is_kept_side_by_side(run: Run, persistence: PersistenceResult) -> None:
    saved = [replace(persistence, continued_run_id=digit * 16) for digit in "ab"]
    for result in saved:
        results.save(run, result)
    assert results.persistence(run) == saved


def test_persistence_of_two_layers_is_kept_side_by_side(run: Run, persistence: PersistenceResult) -> None:
    results.save(run, persistence)
    results.save(run, replace(persistence, layer=persistence.layer + 1))
    assert [result.layer for result in results.persistence(run)] == [persistence.layer, persistence.layer + 1]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), tail=st.sampled_from([b"", b"\xff\xfe", b"]", b"\0"]))
def test_a_file_cut_short_is_refused_in_one_sentence_that_names_it(
    run: Run, probe: ProbeResult, share: float, tail: bytes
) -> None:
    results.save(run, probe)
    (path,) = kept_files(run)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))] + tail)
    with pytest.raises(ValueError, match="is damaged; remove it and measure again") as caught:
        results.probes(run)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_with_a_field_missing_or_of_another_type_is_refused(run: Run, probe: ProbeResult) -> None:
    results.save(run, probe)
    (path,) = kept_files(run)
    text = path.read_text()
    for damaged in (
        text.replace('"best_layer"', '"best"'),
        text.replace('"n_train": ', '"n_train": "many", "n": '),
        "[]",
        "null",
    ):
        assert damaged != text
        path.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged; remove it and measure again"):
            results.probes(run)


def test_saving_again_after_damage_repairs_it(run: Run, probe: ProbeResult) -> None:
    results.save(run, probe)
    (path,) = kept_files(run)
    path.write_bytes(b"{")
    results.save(run, probe)
    assert results.probes(run) == [probe]
