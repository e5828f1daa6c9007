"""A number is read as well as it was planted, as scikit-learn's ridge reads it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from analyze.fitting import PATHS, read
from analyze.probes import ProbeSpec
from analyze.query import Run
from analyze.results import save, values
from analyze.saved import load_probes, save_probes
from analyze.scores import mean_interval
from analyze.states import states_in
from analyze.value_scores import measure_values, score_values
from analyze.valued import ValueResult, probe_values
from tests.analyze.conftest import Plant

N_ROWS, WIDTH = 600, 8
NOISE = {0: 0.0, 1: 0.5, 2: 2.0}
"""Standard deviation of the noise beside the number in a layer's states; the number's own is 1, and layer 0 has nothing."""
SPEC = ProbeSpec("ridge", column="valence")
SEEDS = st.integers(0, 2**32 - 1)


def planted_numbers(seed: int, mean: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    value = rng.standard_normal(N_ROWS)
    states = rng.standard_normal((3, N_ROWS, WIDTH))
    for layer, noise in NOISE.items():
        if layer:
            direction = rng.standard_normal(WIDTH)
            direction /= np.linalg.norm(direction)
            states[layer] -= np.outer(states[layer] @ direction, direction)  # nothing else along it
            states[layer] += np.outer(value + noise * rng.standard_normal(N_ROWS), direction)
    return value + mean, (states * 10.0 ** rng.integers(-3, 4, WIDTH)).astype(np.float32)


def probed(run: Run, spec: ProbeSpec = SPEC) -> ValueResult:
    return probe_values(run, "resid.last", run.layers, spec).result


@pytest.fixture(scope="module")
def planted(plant: Plant) -> Run:
    value, states = planted_numbers(0)
    return plant(states, {"valence": value.tolist(), "split": ["train", "test"] * (N_ROWS // 2)}, rows_per_shard=250)


def test_a_number_is_read_where_it_was_planted_and_about_as_well_as_can_be(planted: Run) -> None:
    result = probed(planted)
    assert result.best_layer == 1
    assert (result.n_train, result.n_test, result.n_test_situations, result.n_unlabelled) == (300, 300, 300, 0)
    for layer in result.layers:
        best = 1 / (1 + NOISE[layer.layer] ** 2) if layer.layer else 0.0
        assert layer.test.r2.value == pytest.approx(best, abs=0.1)
        assert layer.selection_r2 == pytest.approx(best, abs=0.1)
        assert layer.test.correlation.value == pytest.approx(best**0.5, abs=0.1)
        assert layer.control.r2.value < 0.05


def test_the_interval_of_the_shuffled_control_holds_nothing_at_most_layers(plant: Plant) -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((20, 300, 40)).astype(np.float32)
    layers = probed(plant(states, {"valence": rng.standard_normal(300).tolist()})).layers
    assert sum(entry.control.correlation.low <= 0 <= entry.control.correlation.high for entry in layers) >= 16
    assert sum(entry.test.correlation.low <= 0 <= entry.test.correlation.high for entry in layers) >= 16
    assert all(entry.test.r2.low <= 0 and entry.control.r2.low <= 0 for entry in layers)


def test_the_scores_are_those_of_scikit_learns_ridge_of_the_alpha_that_fits_best(plant: Plant) -> None:
    value, states = planted_numbers(1, mean=2000.0)
    test = np.arange(N_ROWS) % 4 == 0
    run = plant(states[1:2], {"valence": value.tolist(), "split": np.where(test, "test", "train").tolist()})
    (ours,) = probed(run).layers
    scaled = StandardScaler().fit(states[1][~test]).transform(states[1].astype(np.float64))
    said = Ridge(alpha=ours.strength).fit(scaled[~test], value[~test]).predict(scaled[test])
    assert ours.test.r2.value == pytest.approx(r2_score(value[test], said), abs=1e-4)
    assert ours.test.correlation.value == pytest.approx(pearsonr(value[test], said).statistic, abs=1e-4)
    forced = [probed(run, ProbeSpec("ridge", alpha, column="valence")).layers[0] for alpha in PATHS["ridge"]]
    assert ours.selection_r2 == pytest.approx(max(layer.selection_r2 for layer in forced), abs=1e-6)
    assert min(layer.selection_r2 for layer in forced) < 0.1


def test_a_kept_probe_gives_the_number_in_its_own_units(plant: Plant) -> None:
    value, states = planted_numbers(2, mean=-40.0)
    run = plant(states, {"valence": value.tolist()})
    found = probe_values(run, "resid.last", run.layers, SPEC)
    save_probes(run, found)
    save(run, found.result)
    assert values(run) == [found.result]
    made, probes = load_probes(run, "resid.last", run.layers, SPEC)
    assert (made.classes, made.gives, made.spec) == (("valence",), "values", SPEC)
    (said,) = read(states_in(run.hidden("resid.last", 1)), [(probes[1], np.arange(N_ROWS))])
    assert r2_score(value, said[:, 0]) > 0.7
    assert found.result.mean == pytest.approx(-40, abs=0.2)
    assert found.result.spread == pytest.approx(1, abs=0.1)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(3, 60), st.sampled_from([0.0, 1.0, 10.0]))
def test_scores_of_numbers_are_those_of_scikit_learn_and_scipy(seed: int, n: int, signal: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(n)
    said = signal * truth + rng.standard_normal(n)
    scores, (r2, r) = score_values(truth, said), measure_values(truth, said)
    assert scores.r2.value == pytest.approx(r2_score(truth, said)) == pytest.approx(r2[0])
    assert scores.correlation.value == pytest.approx(pearsonr(truth, said).statistic) == pytest.approx(r[0])
    assert -1 <= scores.correlation.low <= scores.correlation.high <= 1
    assert np.isfinite([scores.r2.low, scores.r2.high]).all()


def test_intervals_are_as_wide_over_resamples_as_by_influence_and_wider_for_pairs() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(400)
    said = 0.6 * truth + 0.5 * rng.standard_normal(400)
    scores = score_values(truth, said)
    for interval, (value, influence) in zip((scores.r2, scores.correlation), measure_values(truth, said), strict=True):
        by_influence = mean_interval(influence)
        assert value == pytest.approx(interval.value)
        assert interval.high - interval.low == pytest.approx(by_influence.high - by_influence.low, rel=0.15)
    twice = score_values(np.tile(truth, 2), np.tile(said, 2), np.tile(np.arange(400), 2))
    assert twice.r2.high - twice.r2.low == pytest.approx(scores.r2.high - scores.r2.low, rel=0.1)


def test_predictions_that_are_all_the_same_have_no_correlation_and_rare_numbers_a_finite_interval() -> None:
    truth = np.array([1.0] * 19 + [2.0])
    same = score_values(truth, np.full(20, 1 / 3, np.float32))
    assert (same.correlation.value, same.correlation.low, same.correlation.high) == (0, 0, 0)
    assert measure_values(truth, np.full(20, 1 / 3, np.float32))[1][0] == 0
    rare = score_values(truth, truth + np.random.default_rng(0).standard_normal(20))
    assert np.isfinite([rare.r2.low, rare.r2.high]).all()


def test_the_choices_do_not_depend_on_the_test_split_and_the_result_is_the_same_twice(plant: Plant) -> None:
    value, states = planted_numbers(4)
    columns = {"valence": value.tolist(), "split": ["train", "train", "test"] * (N_ROWS // 3)}
    run = plant(states, columns)
    clean = probed(run)
    assert probed(run) == clean
    states[:, 2::3] = np.random.default_rng(0).standard_normal((3, N_ROWS // 3, WIDTH))
    spoilt = probed(plant(states, columns))
    for one, other in zip(clean.layers, spoilt.layers, strict=True):
        assert one.strength == other.strength
        assert one.selection_r2 == pytest.approx(other.selection_r2, abs=1e-6)
    assert spoilt.best.test.r2.value < clean.best.test.r2.value


def test_absent_numbers_are_left_out_and_counted_and_whole_numbers_are_numbers(plant: Plant) -> None:
    value, states = planted_numbers(6)
    ratings: list[int | None] = np.clip(np.round(2 * value) + 5, 1, 9).astype(int).tolist()
    ratings[3] = ratings[5] = None
    whole = probed(plant(states, {"valence": ratings}))
    floats: list[float | None] = [None if rating is None else float(rating) for rating in ratings]
    floats[3] = float("nan")
    assert whole.n_unlabelled == 2
    assert whole.n_train + whole.n_test == N_ROWS - 2
    assert probed(plant(states, {"valence": floats})).layers == whole.layers


@pytest.mark.parametrize(
    ("numbers", "more", "spec", "message"),
    [
        ([0.5] * 30, {}, SPEC, r"column 'valence' of run \w+ is 0.5 for every utterance of split train"),
        ([0.1, 0.7] * 15, {"split": ["train", "test"] * 15}, SPEC, "is 0.1 for every utterance of split train"),
        ([0.1] * 4 + [0.7] * 4, {}, SPEC, "has numbers of 2 situations in split test; a probe needs 5"),
        ([0.1, float("inf")] * 15, {}, SPEC, "15 numbers of column 'valence' are infinite .first: row 1, id 'u1'"),
        ([float("nan")] * 30, {}, SPEC, "no utterance of run .* carries a label in column 'valence'"),
        (["high", "low"] * 15, {}, SPEC, "holds string; this analysis needs numbers"),
        ([[0.1, 0.2]] * 30, {}, SPEC, "labels are text, lists of text, or numbers .one column for each"),
        ([0.1, 0.7] * 15, {}, ProbeSpec(column="valence"), "a linear probe does not predict; choose ridge"),
        ([0.1, 0.7] * 15, {}, ProbeSpec("ridge", balance="weights", column="valence"), "leave --balance away"),
        ([0.1, 0.7] * 15, {}, ProbeSpec("ridge", -1.0, column="valence"), "give an alpha above 0"),
        (
            [0.1, 0.7] * 15,
            {"split": ["train", "test"] * 15, "pair_id": [row // 2 for row in range(30)]},
            SPEC,
            r"15 pairs stand in both train and test",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_cannot_be_probed_are_refused_in_one_sentence(
    plant: Plant, numbers: list[Any], more: dict[str, list[Any]], spec: ProbeSpec, message: str
) -> None:
    run = plant(np.zeros((1, len(numbers), 2), np.float32), {"valence": numbers, **more})
    with pytest.raises(ValueError, match=message) as caught:
        probed(run, spec)
    assert "\n" not in str(caught.value)


def test_a_layer_that_says_nothing_explains_nothing_without_a_warning(plant: Plant) -> None:
    value, _ = planted_numbers(0)
    (layer,) = probed(plant(np.full((1, N_ROWS, 3), 7, np.float32), {"valence": value.tolist()})).layers
    assert layer.test.correlation.value == 0
    assert layer.test.r2.value == pytest.approx(0, abs=0.05)
