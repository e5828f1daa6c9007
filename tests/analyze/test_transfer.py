"""Transfer between conditions, corpora and models: what was planted as shared transfers, what was planted as apart does not."""

import numpy as np
import pytest
from numpy.typing import NDArray

from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run
from analyze.transfer import Source, TransferResult, measure_transfer
from tests.analyze.conftest import Plant

EMOTIONS = ("fear", "joy", "neutral")
WIDTH = 12
N_PAIRS = 150


def told_twice(seed: int, shared: float) -> tuple[NDArray[np.float32], dict[str, list[object]]]:
    """Situations told with their keyword and without, and neutral ones.

    Layer 0 carries each emotion along one direction with the keyword and along another without; `shared` is their cosine.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    rich = {"fear": basis[0], "joy": basis[1], "neutral": np.zeros(WIDTH)}
    turned = {"fear": basis[2], "joy": basis[3], "neutral": np.zeros(WIDTH)}
    free = {name: shared * rich[name] + np.sqrt(1 - shared**2) * turned[name] for name in EMOTIONS}
    labels: list[object] = []
    keyword: list[object] = []
    pairs: list[object] = []
    states = []
    for pair in range(N_PAIRS):
        name = EMOTIONS[pair % 2]
        for with_keyword in (True, False):
            labels.append(name)
            keyword.append(with_keyword)
            pairs.append(f"{name}-{pair}")
            states.append(4 * (rich if with_keyword else free)[name])
    for _ in range(N_PAIRS):
        labels.append("neutral")
        keyword.append(False)
        pairs.append(None)
        states.append(np.zeros(WIDTH))
    order = rng.permutation(len(labels))
    hidden = (np.array(states) + rng.standard_normal((len(states), WIDTH)))[order].astype(np.float32)
    columns = {"label": labels, "keyword": keyword, "pair_id": pairs}
    return hidden[None], {name: [values[place] for place in order] for name, values in columns.items()}


def contrast(run: Run) -> TransferResult:
    sources = [Source("keyword-rich", run, "keyword"), Source("keyword-free", run, "not keyword")]
    return measure_transfer(sources, "resid.last", (0,))


def test_what_both_conditions_share_transfers_and_what_they_do_not_share_does_not(plant: Plant) -> None:
    same, apart = (contrast(plant(*told_twice(0, shared))) for shared in (1.0, 0.0))
    for result in (same, apart):
        for name in result.sources:
            assert result.cell(0, name, name).accuracy.value > 0.9
            assert result.cell(0, name, name).loss.value == 0
    transferred = same.cell(0, "keyword-rich", "keyword-free")
    assert transferred.accuracy.value > 0.9
    assert transferred.loss.low <= 0.02
    lost = apart.cell(0, "keyword-rich", "keyword-free")
    assert lost.accuracy.value < 0.65
    assert lost.loss.low > 0.2
    assert lost.affect_auroc is not None
    assert transferred.affect_auroc is not None
    assert transferred.affect_auroc.low > 0.9 > lost.affect_auroc.value


def test_neutral_utterances_stand_in_every_condition_and_pairs_on_one_side(plant: Plant) -> None:
    result = contrast(plant(*told_twice(1, 1.0)))
    assert result.classes == EMOTIONS
    assert result.n_train == result.n_test[:0] + result.n_train[:1] * 2
    assert result.n_test[0] == result.n_test[1]
    assert result.n_train[0] + result.n_test[0] == 2 * N_PAIRS


def test_two_whole_sources_of_one_run_are_the_probe_of_that_run(plant: Plant) -> None:
    run = plant(*told_twice(2, 0.5))
    whole = measure_transfer([Source("a", run), Source("b", run)], "resid.last", (0,), ProbeSpec("ridge", 10.0))
    probed = probe_layers(run, "resid.last", (0,), ProbeSpec("ridge", 10.0)).result.best
    for train in "ab":
        for test in "ab":
            cell = whole.cell(0, train, test)
            assert cell.accuracy.value == pytest.approx(probed.test.accuracy.value)
            assert cell.auroc.value == pytest.approx(probed.test.auroc.value)
            assert cell.affect_auroc is not None
            assert probed.affect is not None
            assert cell.affect_auroc.value == pytest.approx(probed.affect.auroc.value, abs=1e-6)


def test_runs_of_two_corpora_share_the_labels_that_both_have(plant: Plant) -> None:
    rng = np.random.default_rng(0)
    directions = 3 * rng.standard_normal((4, WIDTH))

    def run_of(names: tuple[str, ...], codes: tuple[int, ...]) -> Run:
        truth = np.arange(240) % len(names)
        states = directions[np.array(codes)[truth]] + rng.standard_normal((240, WIDTH))
        return plant(states[None].astype(np.float32), {"label": [names[label] for label in truth]})

    one, other = run_of(("fear", "joy", "anger"), (0, 1, 2)), run_of(("joy", "sadness", "fear"), (1, 3, 0))
    result = measure_transfer([Source("one", one), Source("other", other)], "resid.last", (0,))
    assert result.classes == ("fear", "joy")
    assert result.cell(0, "one", "other").accuracy.value > 0.95
    assert result.cell(0, "other", "one").affect_auroc is None


def test_what_cannot_be_compared_is_refused_by_name(plant: Plant) -> None:
    rng = np.random.default_rng(0)
    labels: dict[str, list[object]] = {"label": ["fear", "joy"] * 60}
    run = plant(rng.standard_normal((2, 120, 6)).astype(np.float32), labels)
    wide = plant(rng.standard_normal((2, 120, 7)).astype(np.float32), labels)
    shallow = plant(rng.standard_normal((1, 120, 6)).astype(np.float32), labels)
    foreign = plant(rng.standard_normal((2, 120, 6)).astype(np.float32), {"label": ["calm", "tense"] * 60})
    with pytest.raises(ValueError, match="6 and 7 wide"):
        measure_transfer([Source("a", run), Source("b", wide)], "resid.last", (0,))
    with pytest.raises(ValueError, match=r"does not hold layer 1 of resid\.last"):
        measure_transfer([Source("a", run), Source("b", shallow)], "resid.last", (0, 1))
    with pytest.raises(ValueError, match="share 0 labels"):
        measure_transfer([Source("a", run), Source("b", foreign)], "resid.last", (0,))
    with pytest.raises(ValueError, match="a name of its own"):
        measure_transfer([Source("a", run), Source("a", run)], "resid.last", (0,))
    with pytest.raises(ValueError, match="share 0 labels"):
        measure_transfer([Source("a", run), Source("b", run, "label = 'nothing'")], "resid.last", (0,))
    with pytest.raises(ValueError, match="cannot use where='loud'"):
        measure_transfer([Source("a", run), Source("b", run, "loud")], "resid.last", (0,))


def test_what_another_run_is_tested_on_is_not_trained_on(plant: Plant) -> None:
    """Two runs of overlapping utterances, each of which draws a split of its own: noise must be read at chance in both."""
    rng = np.random.default_rng(0)
    labels = ["joy" if value else "fear" for value in rng.permutation(np.arange(400) % 2)]
    noise = rng.standard_normal((1, 400, 60)).astype(np.float32)  # so wide that a probe learns its training rows by heart
    whole, part = (plant(noise[:, :n], {"label": labels[:n]}) for n in (400, 320))
    result = measure_transfer([Source("whole", whole), Source("part", part)], "resid.last", (0,), ProbeSpec("linear", 0.01))
    for train, test in (("whole", "part"), ("part", "whole")):
        assert result.cell(0, train, test).accuracy.low < 0.5 < result.cell(0, train, test).accuracy.high
    assert result.n_train[0] < 320
