"""Labels that may hold together are each found where they were planted, and scored as scikit-learn scores them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from analyze.fitting import Fit, prepare, read, read_probabilities, solve
from analyze.linear import LinearProbe
from analyze.moments import Labels
from analyze.multilabel import MultiLabelResult, probe_sets
from analyze.probes import ProbeSpec
from analyze.query import Run
from analyze.results import multilabels, save
from analyze.saved import load_probes, save_probes
from analyze.scores import score
from analyze.set_scores import measure_sets, score_sets
from analyze.states import states_in
from tests.analyze.conftest import Columns, Plant

N_ROWS, WIDTH = 600, 10
NAMES = ("anger", "fear", "joy")
SHARES = (0.5, 0.3, 0.15)
SPEC = ProbeSpec(column="labels")
SEEDS = st.integers(0, 2**32 - 1)


def planted_sets(seed: int, n_rows: int = N_ROWS) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which labels hold, and states of three layers: nothing, a strong and a weak signal of every label."""
    rng = np.random.default_rng(seed)
    has = rng.random((n_rows, 3)) < SHARES
    states = rng.standard_normal((3, n_rows, WIDTH))
    for layer, strength in enumerate((0.0, 2.0, 0.7)):
        directions = np.linalg.qr(rng.standard_normal((WIDTH, 3)))[0].T
        states[layer] += strength * (has - 0.5) @ directions
    return has, (states * 10.0 ** rng.integers(-3, 4, WIDTH)).astype(np.float32)


def lists_of(has: NDArray[np.bool_]) -> list[list[str]]:
    return [[name for name, mine in zip(NAMES, row, strict=True) if mine] for row in has.tolist()]


@pytest.fixture(scope="module")
def planted(plant: Plant) -> Run:
    has, states = planted_sets(0)
    return plant(states, {"labels": lists_of(has), "split": ["train", "train", "test"] * (N_ROWS // 3)}, rows_per_shard=250)


def probed(run: Run, spec: ProbeSpec = SPEC, **named: Any) -> MultiLabelResult:
    return probe_sets(run, "resid.last", run.layers, spec, **named).result


@pytest.mark.parametrize("kind", ["linear", "ridge", "difference", "logistic"])
def test_labels_are_found_at_their_layer_and_not_in_noise(planted: Run, kind: str) -> None:
    result = probed(planted, ProbeSpec(kind, column="labels"))
    assert result.classes == NAMES
    assert (result.n_train, result.n_test, result.n_unlabelled, result.left_out) == (400, 200, 0, ())
    nothing, strong, weak = result.layers
    assert result.best_layer == 1
    assert all(interval.value > 0.85 for interval in strong.test.label_auroc)
    assert strong.test.auroc.low > weak.test.auroc.high
    assert nothing.test.auroc.low <= 0.5 <= nothing.test.auroc.high
    assert np.mean([layer.control.auroc.value for layer in result.layers]) == pytest.approx(0.5, abs=0.1)
    assert strong.control.exact.high < strong.test.exact.low or kind == "difference"
    assert strong.control.macro_f1.high < strong.test.macro_f1.low


@pytest.mark.parametrize("kind", ["linear", "ridge", "logistic"])
def test_the_scores_are_those_of_scikit_learns_probes_one_label_at_a_time(plant: Plant, kind: str) -> None:
    has, states = planted_sets(3)
    test = np.arange(N_ROWS) % 3 == 0
    run = plant(states[2:], {"labels": lists_of(has), "split": np.where(test, "test", "train").tolist()})
    strength = {"linear": 0.1, "ridge": 10.0, "logistic": 0.01}[kind]
    (ours,) = probed(run, ProbeSpec(kind, strength, column="labels")).layers
    scaled = StandardScaler().fit(states[2][~test]).transform(states[2].astype(np.float64))
    models = {
        "linear": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=strength),
        "ridge": RidgeClassifier(alpha=strength),
        "logistic": LogisticRegression(C=strength, tol=1e-8, max_iter=5000),
    }
    said = np.stack([models[kind].fit(scaled[~test], mine[~test]).decision_function(scaled[test]) for mine in has.T], axis=1)
    named, truth = said > 0, has[test]
    assert [area.value for area in ours.test.label_auroc] == pytest.approx(roc_auc_score(truth, said, average=None), abs=2e-3)
    assert ours.test.auroc.value == pytest.approx(roc_auc_score(truth, said), abs=2e-3)
    assert ours.test.macro_f1.value == pytest.approx(f1_score(truth, named, average="macro", zero_division=0.0), abs=0.02)
    assert ours.test.micro_f1.value == pytest.approx(f1_score(truth, named, average="micro"), abs=0.02)
    assert ours.test.exact.value == pytest.approx((named == truth).all(axis=1).mean(), abs=0.011)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 1e-3, 0.1, 0.95, 1.0]), st.booleans())
def test_discriminants_of_labels_are_those_of_scikit_learn(seed: int, shrinkage: float, constant: bool) -> None:
    has, states = planted_sets(seed, n_rows=200)
    hidden = states[1].copy()
    hidden[:, 0] += 5000 * abs(hidden[:, 0]).max()  # what models have: a feature far off and nearly constant
    if constant:
        hidden[:, 4] = 7.0
    rows = np.random.default_rng(seed).random(len(has)) < 0.8
    (probe,) = solve(prepare(states_in(hidden), [Fit(rows, Labels(has))]), [(0, shrinkage)], "linear")
    (ours,) = read_probabilities(states_in(hidden), [(probe, np.arange(len(has)))])
    scaled = StandardScaler().fit(hidden[rows].astype(np.float64)).transform(hidden.astype(np.float64))
    for label, mine in enumerate(has.T):
        oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(scaled[rows], mine[rows])
        np.testing.assert_allclose(ours[:, label], oracle.predict_proba(scaled)[:, 1], atol=2e-3)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([("linear", 0.1), ("ridge", 3.0), ("logistic", 0.1)]))
def test_both_solvers_say_the_same_of_every_label(seed: int, chosen: tuple[str, float]) -> None:
    kind, strength = chosen
    has, states = planted_sets(seed, n_rows=200)
    prepared = prepare(states_in(states[1]), [Fit(np.arange(200) < 150, Labels(has))])
    (ours,), (theirs,) = (solve(prepared, [(0, strength)], kind, solver) for solver in ("affectome", "scikit-learn"))
    first, second = read(states_in(states[1]), [(ours, np.arange(200)), (theirs, np.arange(200))])
    assert ours.gives == theirs.gives == ("margins" if kind == "ridge" else "log-odds")
    np.testing.assert_allclose(expit(first), expit(second), atol=3e-3)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 4), st.sampled_from([0.0, 0.8, 3.0]))
def test_scores_of_sets_are_those_of_scikit_learn(seed: int, n_labels: int, signal: float) -> None:
    rng = np.random.default_rng(seed)
    has = rng.random((80, n_labels)) < 0.3
    has[0], has[1] = True, False
    said = rng.standard_normal(has.shape) + signal * (has - 0.5)
    scores = score_sets(has, said)
    named = said > 0
    for label, (area, f1) in enumerate(zip(scores.label_auroc, scores.label_f1, strict=True)):
        assert area.value == pytest.approx(roc_auc_score(has[:, label], said[:, label]))
        assert f1.value == pytest.approx(f1_score(has[:, label], named[:, label], zero_division=0.0))
    assert scores.macro_f1.value == pytest.approx(np.mean([f1.value for f1 in scores.label_f1]))
    assert scores.micro_f1.value == pytest.approx(f1_score(has.ravel(), named.ravel(), zero_division=0.0))
    assert scores.exact.value == pytest.approx((has == named).all(axis=1).mean())
    for interval in (scores.auroc, scores.macro_f1, scores.micro_f1, scores.exact):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_the_interval_of_f1_is_as_wide_as_a_bootstrap_of_situations_makes_it() -> None:
    rng = np.random.default_rng(0)
    situations = rng.permutation(np.repeat(np.arange(150), 2))
    of_situation, noise = rng.random((150, 3)) < 0.4, rng.standard_normal((150, 3))
    has = of_situation[situations] ^ (rng.random((300, 3)) < 0.05)
    said = (noise[situations] + 1.5 * (has - 0.5)) + 0.1 * rng.standard_normal((300, 3))
    rows_of = [np.flatnonzero(situations == number) for number in range(150)]
    drawn = [np.concatenate([rows_of[number] for number in rng.integers(0, 150, 150)]) for _ in range(250)]
    for average, interval in (
        ("macro", score_sets(has, said, situations).macro_f1),
        ("micro", score_sets(has, said, situations).micro_f1),
    ):
        spread = np.std([f1_score(has[rows], said[rows] > 0, average=average, zero_division=0.0) for rows in drawn])
        assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(spread, rel=0.2)


def test_a_label_of_sets_that_excludes_the_other_has_the_area_of_two_classes() -> None:
    rng = np.random.default_rng(0)
    truth, said = np.arange(60) % 2, rng.standard_normal((60, 2))
    as_sets = score_sets(np.stack([truth == 0, truth == 1], axis=1), said, np.arange(60) // 3)
    assert as_sets.label_auroc == score(truth, said, np.arange(60) // 3, ranks_only=True).class_auroc


def test_the_chosen_strength_and_layer_do_not_depend_on_the_test_split(plant: Plant) -> None:
    has, states = planted_sets(5)
    columns: Columns = {"labels": lists_of(has), "split": ["train", "train", "test"] * (N_ROWS // 3)}
    clean = probed(plant(states, columns))
    states[:, 2::3] = np.random.default_rng(0).standard_normal((3, N_ROWS // 3, WIDTH))
    spoilt = probed(plant(states, columns))
    for one, other in zip(clean.layers, spoilt.layers, strict=True):
        assert one.strength == other.strength
        assert one.selection_auroc == pytest.approx(other.selection_auroc, abs=1e-4)
    assert clean.best_layer == spoilt.best_layer
    assert spoilt.best.test.auroc.value < clean.best.test.auroc.value


def test_the_same_result_comes_twice_and_alone_as_among_others(planted: Run) -> None:
    result = probed(planted)
    assert probed(planted) == result
    assert probe_sets(planted, "resid.last", (2,), SPEC).result.layers == (result.layers[2],)


def test_rare_labels_are_left_out_by_name_and_what_is_absent_is_counted(plant: Plant) -> None:
    has, states = planted_sets(1, n_rows=120)
    lists: list[list[str] | None] = [*lists_of(has)]
    for row in (0, 1, 2):
        lists[row] = [*(lists[row] or []), "grief"]
    lists[10], lists[11], lists[12] = None, [], ["grief"]
    result = probed(plant(states, {"labels": lists}))
    assert result.classes == NAMES
    (grief,) = result.left_out
    assert (grief.label, grief.n_train + grief.n_test) == ("grief", 4)
    assert result.n_unlabelled == 1
    assert result.n_train + result.n_test == 119
    none = [row for row, names in enumerate(lists) if names is not None and not set(names) & set(NAMES)]
    assert result.n_without == len(none)


def test_the_interval_of_the_shuffled_control_holds_chance_at_most_layers(plant: Plant) -> None:
    rng = np.random.default_rng(0)
    states = rng.standard_normal((20, 300, 40)).astype(np.float32)
    layers = probed(plant(states, {"labels": lists_of(rng.random((300, 3)) < SHARES)})).layers
    assert sum(entry.control.auroc.low <= 0.5 <= entry.control.auroc.high for entry in layers) >= 16
    assert sum(entry.test.auroc.low <= 0.5 <= entry.test.auroc.high for entry in layers) >= 16


@pytest.mark.parametrize(
    ("columns", "spec", "message"),
    [
        ({"labels": [["joy"]] * 9 + [[]]}, SPEC, r"no label in column 'labels' .* \('joy': \d+ in train and \d+ in test\)"),
        ({"labels": [[f"tag {row}"] for row in range(30)]}, SPEC, "'tag 0': .*; and 25 more"),
        ({"labels": [[]] * 30}, SPEC, "every list in column 'labels' .* is empty"),
        ({"labels": [None] * 30}, SPEC, "this analysis needs lists of labels"),
        ({"labels": ["joy", "fear"] * 15}, SPEC, "holds string; this analysis needs lists of labels"),
        ({"label": ["joy", "fear"] * 15}, SPEC, "has no column 'labels', .* it has row, utterance_id, text, label"),
        ({"labels": [["joy"], []] * 15, "split": ["dev"] * 30}, SPEC, "no labelled utterance .* has the split train or test"),
        ({"labels": [["joy"], []] * 15}, ProbeSpec("mlp", column="labels"), "choose from linear, ridge, difference, logistic"),
        ({"labels": [["joy"], []] * 15}, ProbeSpec(balance="paper", column="labels"), "leave --balance away"),
        (
            {"labels": [["joy"], []] * 15, "split": ["train", "test"] * 15, "pair_id": [row // 2 for row in range(30)]},
            SPEC,
            r"15 pairs stand in both train and test \(first: rows \[0, 1\]\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lists_that_cannot_be_probed_are_refused_in_one_sentence(
    plant: Plant, columns: dict[str, list[Any]], spec: ProbeSpec, message: str
) -> None:
    n_rows = len(next(iter(columns.values())))
    with pytest.raises(ValueError, match=message) as caught:
        probed(plant(np.zeros((1, n_rows, 2), np.float32), columns), spec)
    assert "\n" not in str(caught.value)


def test_a_layer_that_says_nothing_scores_a_half_without_a_warning(plant: Plant) -> None:
    run = plant(np.full((1, 60, 3), 7, np.float32), {"labels": [["joy"], ["joy", "fear"], []] * 20})
    for kind in ("linear", "ridge", "difference", "logistic"):
        (layer,) = probed(run, ProbeSpec(kind, column="labels")).layers
        assert layer.test.auroc.value == 0.5


def test_the_area_by_cross_validation_is_that_of_probes_that_had_left_the_rows_out(planted: Run) -> None:
    nothing, strong, _ = probed(planted).layers
    assert nothing.selection_auroc == pytest.approx(0.5, abs=0.08)  # fitted rows would score far above it
    assert strong.selection_auroc == pytest.approx(strong.test.auroc.value, abs=0.08)


@pytest.mark.parametrize("kind", ["linear", "difference", "logistic"])
def test_results_and_probes_are_kept_and_read_back_as_they_were(planted: Run, kind: str) -> None:
    spec = ProbeSpec(kind, column="labels")
    found = probe_sets(planted, "resid.last", planted.layers, spec)
    save_probes(planted, found)
    save(planted, found.result)
    assert found.result in multilabels(planted)
    made, probes = load_probes(planted, "resid.last", planted.layers, spec)
    assert (made.classes, made.spec, made.gives) == (NAMES, spec, found.probes[0].gives)
    states = states_in(planted.hidden("resid.last", 1))
    test = np.arange(2, N_ROWS, 3)
    (said,) = read(states, [(probes[1], test)])
    has, _ = planted_sets(0)
    assert measure_sets(has[test], said).micro_f1[0] == found.result.layers[1].test.micro_f1.value
    kept = probes[1]
    assert isinstance(kept, LinearProbe)
    by_hand = planted.hidden("resid.last", 1)[test] @ kept.weight_DK + kept.bias_K
    np.testing.assert_allclose(by_hand, said, atol=1e-2 * abs(said).max())
