"""What is said of two runs follows from their results and their bytes, and from nothing else."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyze.comparison import Comparison, Measured, compare, half_life
from analyze.comparison_page import page, picture
from analyze.curves import HalfLife
from analyze.persistence import PersistenceResult, measure_persistence
from analyze.probes import probe_layers
from analyze.query import Run
from analyze.scores import Interval
from extract.stored_run import StoredRun
from tests.analyze.conftest import Plant

N = 60
LABELS = ["joy", "fear", "anger"] * (N // 3)
fractions = st.floats(0, 1, allow_nan=False)


def states(n_layers: int, telling: Sequence[int], seed: int = 0) -> NDArray[np.float32]:
    """Noise, and at the telling layers the label."""
    hidden = np.random.default_rng(seed).standard_normal((n_layers + 1, N, 8)).astype(np.float32)
    for layer in telling:
        hidden[layer, np.arange(N), np.arange(N) % 3] += 12
    return hidden


def of_model(run: Run, model: str, digit: str = "0") -> Run:
    """The run as if it were of another model."""
    manifest = replace(run.manifest, model=model, identity=replace(run.manifest.identity, weights=f"sha256:{digit * 64}"))
    return Run(StoredRun(run.stored.objects, manifest))


def measured(run: Run, persistence: PersistenceResult | None = None) -> Measured:
    return Measured(run, (probe_layers(run, "resid.last", run.layers).result,), persistence)


@pytest.fixture(scope="module")
def four(plant: Plant) -> Measured:
    """Four blocks, the label at layer 3."""
    return measured(of_model(plant(states(4, [3]), {"label": LABELS}), "/models/four"))


@pytest.fixture(scope="module")
def two(plant: Plant) -> Measured:
    """Two blocks, the label at layer 1."""
    return measured(of_model(plant(states(2, [1]), {"label": LABELS}), "/models/two"))


def with_accuracy(subject: Measured, accuracy: Interval) -> Measured:
    probe = subject.probes[0]
    layers = tuple(replace(entry, test=replace(entry.test, accuracy=accuracy)) for entry in probe.layers)
    return replace(subject, probes=(replace(probe, layers=layers),))


def said(comparison: Comparison) -> str:
    return "\n".join(sentence for change in comparison.changes for sentence in change.sentences)


def test_layers_stand_at_their_share_of_the_depth_with_the_scores_of_their_probes(four: Measured, two: Measured) -> None:
    comparison = compare(four, [two])
    for profile, subject in ((comparison.run, four), (comparison.earlier[0], two)):
        probe, n_layers = subject.probes[0], subject.run.manifest.n_layers
        site = profile.at("resid.last")
        assert [(point.layer, point.depth) for point in site.layers] == [(n, n / n_layers) for n in range(n_layers + 1)]
        assert [point.accuracy for point in site.layers] == [entry.test.accuracy for entry in probe.layers]
        assert site.best.layer == probe.best_layer
    assert "layer 3 of 4 (0.75 of the depth) is best" in said(comparison)
    assert "there it is layer 1 of 2 (0.50 of the depth)" in said(comparison)


@settings(max_examples=100, deadline=None)
@given(st.lists(fractions, min_size=3, max_size=3), st.lists(fractions, min_size=3, max_size=3))
def test_nothing_is_decided_exactly_where_intervals_overlap(
    four: Measured, two: Measured, mine: list[float], theirs: list[float]
) -> None:
    (low, value, high), (low_2, value_2, high_2) = sorted(mine), sorted(theirs)
    comparison = compare(
        with_accuracy(four, Interval(value, low, high)), [with_accuracy(two, Interval(value_2, low_2, high_2))]
    )
    overlap = low <= high_2 and low_2 <= high
    assert ("nothing is decided" in said(comparison)) == overlap
    assert ("The intervals do not overlap." in said(comparison)) == (not overlap)
    if abs(value - value_2) > 0.01:
        assert (" more." in said(comparison)) == (value > value_2)
        assert (" less." in said(comparison)) == (value < value_2)


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(0, 4)))
def test_the_layers_whose_bytes_changed_are_named_and_no_others(plant: Plant, four: Measured, changed: set[int]) -> None:
    hidden = states(4, [3])
    for layer in changed:
        hidden[layer, N // 2, 0] += 1e-6 * max(1.0, abs(float(hidden[layer, N // 2, 0])))
    again = Measured(of_model(plant(hidden, {"label": LABELS}), "/models/four", "1"), four.probes, None)
    sentence = compare(again, [four]).changes[0].sentences[0]
    if changed:
        _, _, where = sentence.partition("resid.last at layer")
        assert layers_in(where.removeprefix("s").rstrip(".")) == changed
    else:
        assert sentence == "Every hidden state is the same, byte for byte."


def layers_in(text: str) -> set[int]:
    """Reads `0 to 2 and 4`."""
    found: set[int] = set()
    for part in text.replace(" and ", ", ").split(", "):
        ends = [int(end) for end in part.split(" to ")]
        found |= set(range(ends[0], ends[-1] + 1))
    return found


def test_states_of_another_shape_or_cut_are_not_compared(plant: Plant, four: Measured) -> None:
    cut = of_model(plant(states(4, [3]), {"label": LABELS}, rows_per_shard=20), "/models/four", "1")
    sentence = compare(Measured(cut, four.probes, None), [four]).changes[0].sentences[0]
    assert "bytes are not compared" in sentence


def test_a_run_is_held_against_the_last_of_its_own_model_and_the_best_of_the_others(four: Measured, two: Measured) -> None:
    older, newer = (replace(four, run=of_model(four.run, "/models/four", digit)) for digit in "12")
    worse, better = (
        with_accuracy(replace(two, run=of_model(two.run, f"/models/{name}")), Interval(value, value, value))
        for name, value in (("worse", 0.4), ("better", 0.9))
    )
    changes = compare(four, [older, better, newer, worse]).changes
    assert [(change.label, change.why) for change in changes] == [
        ("four (22222222)", "the last of the same model"),
        ("better (00000000)", "the best of the other models"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (HalfLife(49.2, 38.0, None, True), "49 (38 to more than 400)"),
        (HalfLife(None, None, None, True), "more than 400 (more than 400 to more than 400)"),
        (HalfLife(None, None, None, False), "\N{EN DASH}"),
    ],
)
def test_a_half_life_behind_the_grid_is_a_lower_bound(value: HalfLife, text: str) -> None:
    assert half_life(value, 400) == text


ends = st.none() | st.floats(0, 400)


@settings(max_examples=60, deadline=None)
@given(st.tuples(ends, ends, ends), st.tuples(ends, ends, ends), st.booleans())
def test_half_lives_are_decided_by_their_intervals_too(
    persistent: tuple[Measured, Measured],
    mine: tuple[float | None, ...],
    theirs: tuple[float | None, ...],
    above: bool,
) -> None:
    def lasting(subject: Measured, values: tuple[float | None, ...], above_chance: bool) -> Measured:
        low, value, high = sorted(values, key=beyond)
        assert subject.persistence is not None
        curves = tuple(
            replace(curve, half_life=HalfLife(value, low, high, above_chance)) for curve in subject.persistence.curves
        )
        return replace(subject, persistence=replace(subject.persistence, curves=curves))

    comparison = compare(lasting(persistent[0], mine, above), [lasting(persistent[1], theirs, True)])
    sentence = comparison.changes[0].sentences[-1]
    if not above:
        assert "nothing to halve" in sentence
        return
    (low, _, high), (low_2, _, high_2) = sorted(map(beyond, mine)), sorted(map(beyond, theirs))
    assert ("nothing is decided" in sentence) == (low <= high_2 and low_2 <= high)


def beyond(end: float | None) -> float:
    return math.inf if end is None else end


@pytest.fixture(scope="module")
def persistent(plant: Plant, four: Measured, two: Measured) -> tuple[Measured, Measured]:
    hidden = np.random.default_rng(0).standard_normal((1, N, 3, 3)).astype(np.float32)
    continued = plant(hidden, {"label": LABELS}, offsets=(0, 1, 4))
    result = measure_persistence(continued, continued, 0)
    return replace(four, persistence=result), replace(two, persistence=result)


def test_the_page_has_every_run_and_the_picture_is_one(persistent: tuple[Measured, Measured]) -> None:
    new, old = persistent
    many = [replace(old, run=of_model(old.run, f"/models/old-{n}")) for n in range(30)]
    comparison = compare(new, many)
    text = page(comparison, "builtin", "raw")
    assert text.startswith("# four (00000000) beside 30 earlier runs\n")
    assert all(f"| old-{n} (00000000) |" in text for n in range(30))
    assert "## For how long" in text
    assert picture(comparison).startswith(b"\x89PNG")


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.sampled_from(["$x_1$", "a|b", "_hidden", "<b>", "*"])
)
def test_whatever_models_and_corpora_are_called_tables_keep_their_columns(two: Measured, four: Measured, name: str) -> None:
    comparison = compare(four, [replace(two, run=of_model(two.run, name))])
    rows = [line for line in page(comparison, name, name).splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {8, 13}


@pytest.mark.parametrize("name", ["$x_1$", "_hidden", "a\tb\x1f", "%s {0}", "\\alpha", "x" * 300])
def test_whatever_a_model_is_called_the_picture_is_drawn(two: Measured, four: Measured, name: str) -> None:
    odd = replace(two, run=of_model(two.run, name))
    assert picture(compare(odd, [odd, four])).startswith(b"\x89PNG")


def test_the_same_results_make_the_same_comparison(four: Measured, two: Measured) -> None:
    assert compare(four, [two]) == compare(replace(four, run=Run(four.run.stored)), [two])
