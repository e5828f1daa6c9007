"""What the analyses claim of planted states is true as often as they claim it.

A truth is a number of the planted distribution: what the very probe that was fitted scores on a hundred times as many fresh
states, or, where several training sets stand behind a number, the mean over training sets of that size. Everything goes
through the public functions on stored runs. A run holds several draws of the states as its layers, because a run costs more
to make than a layer; labels are drawn anew for every run.

Shape suffixes: L layers, N utterances, O offsets, K classes, D width.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from analyze.curves import ALL_EMOTIONS, half_life
from analyze.fitting import Fit, prepare, read_probabilities, solve
from analyze.moments import Target
from analyze.persistence import PersistenceResult, make_classifier, measure_persistence
from analyze.probes import LayerScores, Probed, ProbeSpec, probe_layers
from analyze.query import Run
from analyze.scores import Interval
from analyze.states import states_in
from analyze.transfer import Source, measure_transfer
from analyze.where import ONSET_SHARE, PLATEAU_SHARE
from extract.identity import sha256_hex
from tests.analyze.conftest import Plant

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

N_SEEDS = 200
N_DRAWS = 20
"""Draws of the states that one run holds."""
LEAST = 0.9
"""Share of seeds in which a 95% interval has to hold the truth."""
LEAST_OF_60 = 51 / 60
"""The same for the 60 draws of a quick test: an interval of 95% holds less often in one test of 500."""
N_FRESH = 30_000
WIDTH = 8


@dataclass(frozen=True, slots=True)
class World:
    """A distribution of labelled states."""

    share_K: tuple[float, ...]
    """How frequent each class is."""
    strength: float
    """Distance of each class's mean from 0, each along an axis of its own; noise has variance 1 along every axis."""
    n_pair: int = 1
    """Utterances of one situation, which share 0.8 of their noise's variance."""

    def draw(self, rng: np.random.Generator, n: int) -> Codes:
        """The classes of n utterances; shares are exact but for rounding."""
        n_situations = n // self.n_pair
        edges = np.round(np.cumsum(self.share_K) * n_situations).astype(int)
        return np.repeat(rng.permutation(np.searchsorted(edges, np.arange(n_situations), side="right")), self.n_pair)

    def states(self, rng: np.random.Generator, code_N: Codes, n_pair: int = 1) -> Floats:
        """Their states."""
        noise_ND = rng.standard_normal((len(code_N), WIDTH))
        if n_pair > 1:
            shared_ND = np.repeat(rng.standard_normal((len(code_N) // n_pair, WIDTH)), n_pair, axis=0)
            noise_ND = 0.8**0.5 * shared_ND + 0.2**0.5 * noise_ND
        return noise_ND + self.strength * np.eye(len(self.share_K), WIDTH)[code_N]

    def run(self, plant: Plant, seed: int, n_train: int, n_test: int, n_draws: int) -> Run:
        """A stored run whose layers are draws of the states."""
        rng = np.random.default_rng(seed)
        code_N = np.concatenate([self.draw(rng, n_train), self.draw(rng, n_test)])
        hidden = np.stack([self.states(rng, code_N, self.n_pair) for _ in range(n_draws)]).astype(np.float32)
        columns = {
            "label": [f"emotion {code}" for code in code_N],
            "split": ["train"] * n_train + ["test"] * n_test,
            "pair_id": [f"situation {number}" for number in np.arange(len(code_N)) // self.n_pair],
        }
        return plant(hidden, columns)


def held(count: Counter[str], n: int) -> dict[str, float]:
    return {name: count[name] / n for name in sorted(count)}


def holds(interval: Interval | None, truth: float) -> bool:
    assert interval is not None
    return interval.low <= truth <= interval.high


def calibration_error(code_N: Codes, probability_NK: Floats) -> float:
    confidence_N = probability_NK.max(axis=1)
    bin_N = np.minimum((15 * confidence_N).astype(int), 14)
    return float(np.abs(np.bincount(bin_N, confidence_N - (probability_NK.argmax(axis=1) == code_N))).sum() / len(code_N))


def count_scores(count: Counter[str], scores: LayerScores, code_N: Codes, probability_NK: Floats) -> None:
    """Which intervals of a test hold what the same probe scores on fresh states."""
    n_classes = probability_NK.shape[1]
    test, said_N = scores.test, probability_NK.argmax(axis=1)
    areas = [float(roc_auc_score(code_N == code, probability_NK[:, code])) for code in range(n_classes)]
    count["accuracy"] += holds(test.accuracy, float(np.mean(said_N == code_N)))
    count["macro_f1"] += holds(test.macro_f1, float(f1_score(code_N, said_N, average="macro")))
    count["auroc"] += holds(test.auroc, float(np.mean(areas)))
    count["auroc of class 0"] += holds(test.class_auroc[0], areas[0])
    count["auroc of class 1"] += holds(test.class_auroc[1], areas[1])
    count["log_loss"] += holds(test.log_loss, float(log_loss(code_N, probability_NK)))
    count["calibration_error"] += holds(test.calibration_error, calibration_error(code_N, probability_NK))


EVEN = (1 / 3, 1 / 3, 1 / 3)
RARE = (0.024, *[0.976 / 6] * 6)
"""Seven classes; of 420 test utterances ten are of the first."""


def share_of_scores_held(plant: Plant, world: World, n_train: int, n_test: int, n_runs: int) -> dict[str, float]:
    """How often the intervals of a layer's test hold what the same probe scores on fresh states."""
    count: Counter[str] = Counter()
    for seed in range(n_runs):
        run = world.run(plant, seed, n_train, n_test, N_DRAWS)
        probed = probe_layers(run, "resid.last", run.layers, ProbeSpec(strength=0.1))
        rng = np.random.default_rng((seed, 1))
        code_N = world.draw(rng, N_FRESH)
        fresh = states_in(world.states(rng, code_N))
        said = read_probabilities(fresh, [(probe, np.arange(N_FRESH)) for probe in probed.probes])
        for scores, probability_NK in zip(probed.result.layers, said, strict=True):
            count_scores(count, scores, code_N, probability_NK)
    return held(count, n_runs * N_DRAWS)


def share_of_controls_held(plant: Plant, world: World, n_runs: int) -> dict[str, float]:
    """How often the intervals of the shuffled control hold chance."""
    count: Counter[str] = Counter()
    for seed in range(n_runs):
        run = world.run(plant, seed, 180, 90, N_DRAWS)
        for scores in probe_layers(run, "resid.last", run.layers, ProbeSpec(strength=0.1)).result.layers:
            count["accuracy"] += holds(scores.control.accuracy, 1 / 3)
            count["auroc"] += holds(scores.control.auroc, 0.5)
    return held(count, n_runs * N_DRAWS)


def test_scores_and_controls_of_60_draws_hold_what_they_should_about_as_often_as_they_say(plant: Plant) -> None:
    for world in (World(EVEN, 2.5), World(EVEN, 1.5, n_pair=2)):
        shares = share_of_scores_held(plant, world, 300, 150, 3)
        assert min(shares.values()) >= LEAST_OF_60, shares
    shares = share_of_controls_held(plant, World(EVEN, 4.0), 3)
    assert min(shares.values()) >= LEAST_OF_60, shares


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "n_train", "n_test"),
    [
        (World(EVEN, 1.0), 300, 150),
        (World(EVEN, 2.5), 300, 150),
        (World(EVEN, 1.5, n_pair=2), 300, 150),
        (World(RARE, 1.5), 840, 420),
        (World(RARE, 3.0), 840, 420),
        (World(RARE, 1.5, n_pair=2), 840, 420),
    ],
    ids=["even", "even and strong", "even pairs", "one rare", "one rare and strong", "one rare, pairs"],
)
def test_scores_hold_what_the_probe_scores_on_fresh_states(plant: Plant, world: World, n_train: int, n_test: int) -> None:
    shares = share_of_scores_held(plant, world, n_train, n_test, N_SEEDS // N_DRAWS)
    assert min(shares.values()) >= LEAST, shares


@pytest.mark.slow
@pytest.mark.parametrize("n_pair", [1, 2])
@pytest.mark.parametrize("strength", [0.0, 1.5, 4.0])
def test_controls_hold_chance(plant: Plant, strength: float, n_pair: int) -> None:
    shares = share_of_controls_held(plant, World(EVEN, strength, n_pair), N_SEEDS // N_DRAWS)
    assert min(shares.values()) >= LEAST, shares


RISE = (0.0, 0.25, 0.6, 1.15, 1.9, 2.0, 1.9, 1.3)
"""Strength by layer."""


def rising_run(plant: Plant, seed: int, n: int, scale: float = 1.0) -> Run:
    """Layers whose noise goes together by half, as that of a model's does."""
    rng = np.random.default_rng(seed)
    code_N = rng.permutation(np.arange(n) % 4)
    noise = 0.5**0.5 * rng.standard_normal((1, n, WIDTH)) + 0.5**0.5 * rng.standard_normal((len(RISE), n, WIDTH))
    hidden = noise + scale * np.array(RISE)[:, None, None] * np.eye(4, WIDTH)[code_N]
    return plant(hidden.astype(np.float32), {"label": [f"emotion {code}" for code in code_N]})


def fresh_accuracy(probed: Probed, rng: np.random.Generator) -> Floats:
    code_N = np.arange(N_FRESH) % 4
    noise_ND = rng.standard_normal((N_FRESH, WIDTH))
    accuracies = []
    for strength, probe in zip(RISE, probed.probes, strict=True):
        states = states_in(noise_ND + strength * np.eye(4, WIDTH)[code_N])
        (said_NK,) = read_probabilities(states, [(probe, np.arange(N_FRESH))])
        accuracies.append(float(np.mean(said_NK.argmax(axis=1) == code_N)))
    return np.array(accuracies)


@pytest.mark.slow
def test_onset_peak_and_plateau_hold_where_probes_of_that_size_reach_half_all_and_95_percent(plant: Plant) -> None:
    """Cross-validation fits four fifths of the 320 that train: probes of runs that train on 256 say where the truth is."""
    sized = [probe_layers(rising_run(plant, 1000 + seed, 320), "resid.last", range(len(RISE))) for seed in range(12)]
    above_L = np.mean([fresh_accuracy(probed, np.random.default_rng(7)) for probed in sized], axis=0) - 0.25
    peak = int(above_L.argmax())
    kept = np.flatnonzero(above_L >= PLATEAU_SHARE * above_L.max())
    truth = {
        "onset": int(np.argmax(above_L >= ONSET_SHARE * above_L.max())),
        "peak": peak,
        "plateau_start": int(kept.min()),
        "plateau_stop": int(kept.max()),
    }
    assert kept.tolist() == list(range(kept.min(), kept.max() + 1))
    count: Counter[str] = Counter(dict.fromkeys(truth, 0))
    for seed in range(N_SEEDS):
        where = probe_layers(rising_run(plant, seed, 400), "resid.last", range(len(RISE)), ProbeSpec(strength=0.1)).result.where
        assert where is not None
        for name, layer in truth.items():
            count[name] += getattr(where, name).low <= layer <= getattr(where, name).high
    assert min(count.values()) >= LEAST * N_SEEDS, (truth, held(count, N_SEEDS))


@pytest.mark.slow
def test_nothing_is_located_in_noise_however_many_layers_there_are(plant: Plant) -> None:
    located = 0
    for seed in range(40):
        run = World(EVEN, 0.0).run(plant, seed, 150, 60, 25)
        located += probe_layers(run, "resid.last", run.layers, ProbeSpec(strength=0.1)).result.where is not None
    assert located <= 4


OFFSETS = (0, 2, 8, 32)


def decaying_states(rng: np.random.Generator, code_N: Codes, half: float) -> Floats:
    """Two classes whose distance halves every so many tokens; the noise along a text goes together by half."""
    strength_O = 1.4 * 0.5 ** (np.array(OFFSETS) / half)
    n = len(code_N)
    noise = 0.5**0.5 * rng.standard_normal((n, 1, WIDTH)) + 0.5**0.5 * rng.standard_normal((n, len(OFFSETS), WIDTH))
    states: Floats = noise + strength_O[:, None] * (np.eye(1, WIDTH) * (2 * code_N[:, None] - 1))[:, None]
    return states


def mean_areas(half: float, n_train: int, n_sets: int = 150) -> Floats:
    """AUROC at each offset of probes of that size, mean over training sets: for two normal classes it is known exactly."""
    rng = np.random.default_rng(99)
    area = np.zeros(len(OFFSETS))
    for _ in range(n_sets):
        code_N = rng.permutation(np.arange(n_train) % 2)
        states = decaying_states(rng, code_N, half)
        for index, offset in enumerate(OFFSETS):
            scaler = StandardScaler().fit(states[:, index])
            probe = make_classifier("linear").fit(scaler.transform(states[:, index]), code_N)
            weight_D = probe.coef_[0] / scaler.scale_
            distance = 2 * 1.4 * 0.5 ** (offset / half) * weight_D[0]
            area[index] += float(norm.cdf(distance / (2**0.5 * np.linalg.norm(weight_D)))) / n_sets
    return area


def decaying_result(plant: Plant, seed: int, half: float, n: int) -> PersistenceResult:
    rng = np.random.default_rng(seed)
    code_N = rng.permutation(np.arange(n) % 2)
    hidden = decaying_states(rng, code_N, half)[None].astype(np.float32)
    run = plant(hidden, {"label": [("fear", "joy")[code] for code in code_N]}, offsets=OFFSETS)
    return measure_persistence(run, run, 0)


@pytest.mark.slow
@pytest.mark.parametrize("half", [1.0, 6.0, 400.0], ids=["fast", "slow", "not within the grid"])
def test_half_lives_and_curves_hold_those_of_probes_of_that_size_and_shuffled_curves_hold_chance(
    plant: Plant, half: float
) -> None:
    n = 100
    truth_O = mean_areas(half, 4 * n // 5)
    (true,) = half_life(OFFSETS, truth_O[None])
    count: Counter[str] = Counter()
    for seed in range(N_SEEDS):
        result = decaying_result(plant, seed, half, n)
        refit, shuffled = result.curve(ALL_EMOTIONS, "refit"), result.curve(ALL_EMOTIONS, "shuffled")
        life = refit.half_life
        assert life.above_chance
        low, high = (np.inf if end is None else end for end in (life.low, life.high))
        count["half-life"] += bool(low <= true <= high)
        for offset, area, one, chance in zip(OFFSETS, truth_O, refit.auroc, shuffled.auroc, strict=True):
            count[f"auroc at {offset}"] += holds(one, float(area))
            count[f"shuffled at {offset}"] += holds(chance, 0.5)
    assert np.isfinite(true) == (half < 400)
    assert min(count.values()) >= LEAST * N_SEEDS, (true, held(count, N_SEEDS))


WORDS = tuple(f"word{number}" for number in range(20))


def control_classes(words: list[str], share_K: Floats) -> Codes:
    """The control task as docs/analyze.md tells it: a random class for every first word, drawn as labels are frequent."""
    draw = np.array([int(sha256_hex(word.encode())[:12], 16) / 16**12 for word in words])
    return np.minimum(np.searchsorted(np.cumsum(share_K), draw, side="right"), len(share_K) - 1)


def worded_states(rng: np.random.Generator, n: int) -> tuple[Codes, list[str], Floats]:
    """Utterances whose states tell their class, and a little of their first word."""
    code_N, word_N = rng.permutation(np.arange(n) % 3), rng.integers(0, len(WORDS), n)
    meaning_WD = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH))
    states_ND = rng.standard_normal((n, WIDTH)) + 1.2 * np.eye(3, WIDTH)[code_N] + 0.5 * meaning_WD[word_N]
    return code_N, [WORDS[word] for word in word_N], states_ND


def selectivities(plant: Plant, n_runs: int) -> Iterator[tuple[Interval, float]]:
    """Selectivity as reported, and that of the same two probes on fresh states."""
    n_train, n_test = 240, 120
    for seed in range(n_runs):
        rng = np.random.default_rng(seed)
        code_N, words, states_ND = worded_states(rng, n_train + n_test)
        split = ["train"] * n_train + ["test"] * n_test
        run = plant(
            states_ND[None].astype(np.float32), {"label": [str(code) for code in code_N], "text": words, "split": split}
        )
        probed = probe_layers(run, "resid.last", (0,), ProbeSpec(strength=0.1))
        share_K = np.bincount(code_N[:n_train]) / n_train
        train_N = np.arange(n_train + n_test) < n_train
        task = Fit(train_N, Target(control_classes(words, share_K), 3))
        (task_probe,) = solve(prepare(states_in(states_ND.astype(np.float32)), [task]), [(0, 0.1)], "linear")
        fresh_code_N, fresh_words, fresh_ND = worded_states(rng, N_FRESH)
        rows = np.arange(N_FRESH)
        said, of_task = read_probabilities(states_in(fresh_ND), [(probed.probes[0], rows), (task_probe, rows)])
        right = float(np.mean(said.argmax(axis=1) == fresh_code_N))
        yield (
            probed.result.best.selectivity,
            right - float(np.mean(of_task.argmax(axis=1) == control_classes(fresh_words, share_K))),
        )


@pytest.mark.slow
def test_selectivity_holds_that_of_the_same_probes_on_fresh_states(plant: Plant) -> None:
    count = sum(holds(interval, truth) for interval, truth in selectivities(plant, N_SEEDS))
    assert count >= LEAST * N_SEEDS, count / N_SEEDS


@pytest.mark.slow
@pytest.mark.parametrize("cosine", [0.2, 0.95])
def test_the_loss_of_a_transfer_holds_that_of_the_same_probes_on_fresh_states(plant: Plant, cosine: float) -> None:
    """Two corpora that tell three classes along axes turned against each other."""
    basis = np.eye(6, WIDTH)
    means = (1.5 * basis[:3], 1.5 * (cosine * basis[:3] + (1 - cosine**2) ** 0.5 * basis[3:]))
    count: Counter[str] = Counter()
    for seed in range(N_SEEDS // N_DRAWS):
        rng = np.random.default_rng(seed)
        runs = []
        for mean_KD in means:
            code_N = rng.permutation(np.arange(300) % 3)
            hidden = rng.standard_normal((N_DRAWS, 300, WIDTH)) + mean_KD[code_N]
            runs.append(plant(hidden.astype(np.float32), {"label": [str(code) for code in code_N]}))
        spec = ProbeSpec(strength=0.1)
        result = measure_transfer([Source("a", runs[0]), Source("b", runs[1])], "resid.last", runs[0].layers, spec)
        probes_a, probes_b = (probe_layers(run, "resid.last", run.layers, spec).probes for run in runs)
        code_N = np.arange(N_FRESH) % 3
        fresh = states_in(rng.standard_normal((N_FRESH, WIDTH)) + means[1][code_N])
        said = read_probabilities(fresh, [(probe, np.arange(N_FRESH)) for probe in (*probes_a, *probes_b)])
        right = [float(np.mean(one.argmax(axis=1) == code_N)) for one in said]
        for layer, (foreign, own) in enumerate(zip(right[:N_DRAWS], right[N_DRAWS:], strict=True)):
            cell = result.cell(layer, "a", "b")
            count["loss"] += holds(cell.loss, own - foreign)
            count["accuracy"] += holds(cell.accuracy, foreign)
    assert min(count.values()) >= LEAST * N_SEEDS, held(count, N_SEEDS)
