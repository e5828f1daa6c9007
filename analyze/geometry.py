"""How a layer lays the labels out: how far apart they are, which lie close together, and how alike layers and models are.

Everything is measured on states standardised feature by feature, because a few features of huge variance would otherwise be
the whole geometry. Fitted probes play no part: they are made to pull labels apart. Large runs are sampled by situation, and
results say how many utterances they rest on.

    between      share of the variance that lies between labels, less what as many labels without meaning would get
    silhouette   how much closer an utterance is to its own label than to the next (Rousseeuw 1987)
    cosines      between the directions from the mean of all labels' means to each label's own
    grouping     whether the emotions that arXiv 2510.04064 finds together have the closest directions
    similarity   between layers or models: debiased linear CKA (Kornblith et al. 2019, Song et al. 2012)

Shape suffixes: N utterances, B blocks of situations, D width, K classes, L layers, P permutations.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_samples

from analyze.examples import FEWEST_SITUATIONS, SEED, Examples, labelled_examples
from analyze.mapping import Mapper, ignore, in_threads
from analyze.moments import Floats
from analyze.query import Run
from analyze.scores import Interval, mean_interval

PAIRS = (("anger", "disgust"), ("joy", "surprise"), ("fear", "sadness"))
"""Emotions that lie together in arXiv 2510.04064."""
N_PERMUTATIONS = 500
"""How often labels are permuted among situations."""
MOST_UTTERANCES = 4000
"""Of a large run, how many are looked at."""
MOST_COMPARED = 1000
"""Utterances that the similarity of layers and models rests on."""

_N_BLOCKS = 50
_FEWEST = 2 * FEWEST_SITUATIONS
_NORMAL_95 = 1.959964
_PERMUTATIONS_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Grouping:
    """The paper's pairs of emotions at one layer."""

    contrast: Interval
    """Mean cosine within the pairs less that across them."""
    rank: int
    """Place of this pairing among all pairings of the six emotions by contrast, 1 for the highest."""
    n_pairings: int
    """How many pairings there are."""


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """One layer."""

    layer: int
    """Which."""
    between: Interval
    """Share of the variance between labels, debiased (epsilon squared); a jackknife's interval."""
    p_value: float
    """Share of permutations of the labels that get as much, themselves included."""
    silhouette: Interval
    """Mean over utterances, from -1 to 1."""
    cosines: tuple[tuple[float, ...], ...]
    """Between the directions of the labels, in the order of the classes."""
    grouping: Grouping | None
    """None where the labels are not the paper's."""


@dataclass(frozen=True, slots=True)
class GeometryResult:
    """The geometry of one site of one run."""

    run_id: str
    """The run."""
    site: str
    """Where the states were read."""
    classes: tuple[str, ...]
    """The labels."""
    n_utterances: int
    """How many were looked at."""
    n_situations: int
    """Situations they tell."""
    layers: tuple[LayerGeometry, ...]
    """Ascending."""
    n_compared: int
    """Utterances that the similarity rests on."""
    similarity: tuple[tuple[float, ...], ...]
    """Between layers, in their order."""


def measure_geometry(
    run: Run,
    site: str,
    layers: Sequence[int],
    on_layer: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> GeometryResult:
    """Measure the geometry of layers.

    Args:
        on_layer: called with the number of layers done, as they are done.
        mapper: where layers are done; the numbers are the same everywhere.

    Raises:
        ValueError: the run is not complete, has no usable labels, or lacks the site or a layer.
    """
    run.require_complete()
    examples = _sampled(labelled_examples(run))
    compared = _spread_out(examples.rows, MOST_COMPARED)

    def measure(layer: int) -> tuple[LayerGeometry, NDArray[np.float32]]:
        z_ND = _standardised(run.hidden_rows(site, layer, examples.rows))
        return _layer(layer, z_ND, examples), _gram(run.hidden_rows(site, layer, compared))

    done = mapper(measure, layers, on_layer)
    grams = [gram for _, gram in done]
    return GeometryResult(
        run_id=run.run_id,
        site=site,
        classes=examples.classes,
        n_utterances=len(examples.rows),
        n_situations=len(np.unique(examples.groups)),
        layers=tuple(layer for layer, _ in done),
        n_compared=len(compared),
        similarity=_similarities(grams, grams),
    )


def compare_models(one: Run, other: Run, site: str, mapper: Mapper = in_threads) -> tuple[tuple[float, ...], ...]:
    """Similarity of every layer of one run (rows) to every layer of another (columns) at a site.

    Raises:
        ValueError: the runs are of different utterances, not complete, or lack the site.
    """
    if one.manifest.identity.corpus != other.manifest.identity.corpus:
        raise ValueError(
            f"runs {one.run_id} and {other.run_id} are of different utterances, so their states cannot be compared"
        )
    for run in (one, other):
        run.require_complete()
    rows = _spread_out(np.arange(one.manifest.n_rows), MOST_COMPARED)

    def grams(run: Run) -> list[NDArray[np.float32]]:
        return mapper(lambda layer: _gram(run.hidden_rows(site, layer, rows)), run.layers_of(site))

    return _similarities(grams(one), grams(other))


def _sampled(examples: Examples) -> Examples:
    """All utterances, or those of situations drawn until there are enough."""
    if len(examples.rows) <= MOST_UTTERANCES:
        return examples
    situations = np.random.default_rng(SEED).permutation(np.unique(examples.groups))
    first = [  # of each label, or a rare one might have one situation, or none
        [group for group in situations.tolist() if group in set(examples.groups[examples.labels == name].tolist())][:_FEWEST]
        for name in examples.classes
    ]
    ordered = np.array(list(dict.fromkeys([*itertools.chain(*first), *situations.tolist()])))
    size_of = np.bincount(examples.groups)
    taken = ordered[np.cumsum(size_of[ordered]) <= MOST_UTTERANCES]
    return examples.take(np.isin(examples.groups, taken))


def _spread_out(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _standardised(hidden_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    spread_D = hidden_ND.std(axis=0, dtype=np.float64)
    mean_D = hidden_ND.mean(axis=0, dtype=np.float64)
    z_ND: NDArray[np.float32] = ((hidden_ND - mean_D) / np.where(spread_D > 0, spread_D, 1.0)).astype(np.float32)
    return z_ND


def _layer(layer: int, z_ND: NDArray[np.float32], examples: Examples) -> LayerGeometry:
    truth_N, n_classes = examples.truth, len(examples.classes)
    situation_N = np.unique(examples.groups, return_inverse=True)[1]
    parts = _parts(z_ND, truth_N, situation_N, n_classes)
    means_KD = parts.sums_BKD.sum(axis=0) / parts.count_BK.sum(axis=0)[:, None]
    return LayerGeometry(
        layer=layer,
        between=_jackknife(parts, _between),
        p_value=_p_value(z_ND, truth_N, situation_N, n_classes),
        silhouette=_silhouette(z_ND, truth_N, situation_N),
        cosines=tuple(tuple(float(value) for value in row) for row in _cosines(means_KD)),
        grouping=_grouping(parts, examples.classes),
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """Sums over blocks of situations."""

    count_BK: Floats
    sums_BKD: Floats
    squares_B: Floats


def _parts(z_ND: NDArray[np.float32], truth_N: NDArray[np.int64], situation_N: NDArray[np.int64], n_classes: int) -> _Parts:
    n_situations = int(situation_N.max()) + 1
    n_blocks = min(_N_BLOCKS, n_situations)
    block_N = np.random.default_rng(SEED).permutation(np.arange(n_situations) % n_blocks)[situation_N]
    cell_N = block_N * n_classes + truth_N
    member_NC = (cell_N[:, None] == np.arange(n_blocks * n_classes)).astype(np.float32)
    return _Parts(
        count_BK=member_NC.sum(axis=0, dtype=np.float64).reshape(n_blocks, n_classes),
        sums_BKD=(member_NC.T @ z_ND).astype(np.float64).reshape(n_blocks, n_classes, -1),
        squares_B=np.bincount(block_N, np.square(z_ND, dtype=np.float64).sum(axis=1), minlength=n_blocks).astype(np.float64),
    )


def _between(count_K: Floats, sums_KD: Floats, squares: float) -> float:
    """Epsilon squared over all features together (Kelley 1935): the share between labels, less its expectation by chance."""
    present_K = count_K > 0
    count_K, sums_KD = count_K[present_K], sums_KD[present_K]
    n, n_classes = float(count_K.sum()), len(count_K)
    of_mean = float(np.square(sums_KD.sum(axis=0)).sum()) / n
    between = float((np.square(sums_KD).sum(axis=1) / count_K).sum()) - of_mean
    total = squares - of_mean
    return 1 - (1 - between / total) * (n - 1) / (n - n_classes) if total > 0 else 0.0


def _jackknife(parts: _Parts, statistic: Callable[[Floats, Floats, float], float]) -> Interval:
    """A statistic of the sums with a normal interval from leaving out each block of situations in turn."""
    count_K, sums_KD, squares = parts.count_BK.sum(axis=0), parts.sums_BKD.sum(axis=0), float(parts.squares_B.sum())
    value = statistic(count_K, sums_KD, squares)
    without_B = np.array(
        [
            statistic(count_K - count, sums_KD - sums, squares - float(square))
            for count, sums, square in zip(parts.count_BK, parts.sums_BKD, parts.squares_B, strict=True)
        ]
    )
    n_blocks = len(without_B)
    half = _NORMAL_95 * float(np.sqrt((n_blocks - 1) / n_blocks * np.square(without_B - without_B.mean()).sum()))
    return Interval(value, value - half, value + half)


def _p_value(z_ND: NDArray[np.float32], truth_N: NDArray[np.int64], situation_N: NDArray[np.int64], n_classes: int) -> float:
    """Permute labels among situations that tell as many utterances, and count how often labels lie as far apart.

    Labels that differ within a situation stay apart in it: each situation's own labels move together.
    """
    generator = np.random.default_rng(SEED)
    observed = _spread_between(z_ND, truth_N[None], n_classes)[0]
    n_as_much = 1
    for count in _portions(N_PERMUTATIONS, _PERMUTATIONS_AT_ONCE):
        permuted_PN = np.stack([_permuted(truth_N, situation_N, generator) for _ in range(count)])
        n_as_much += int((_spread_between(z_ND, permuted_PN, n_classes) >= observed).sum())
    return n_as_much / (N_PERMUTATIONS + 1)


def _permuted(truth_N: NDArray[np.int64], situation_N: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    order = np.argsort(situation_N, kind="stable")
    size_G = np.bincount(situation_N)
    begin_G = np.concatenate([[0], np.cumsum(size_G)[:-1]])
    permuted_N = np.empty_like(truth_N)
    for size in np.unique(size_G).tolist():
        begins = begin_G[size_G == size]
        places = begins[:, None] + np.arange(size)
        permuted_N[order[places]] = truth_N[order[generator.permutation(begins)[:, None] + np.arange(size)]]
    return permuted_N


def _spread_between(z_ND: NDArray[np.float32], label_PN: NDArray[np.int64], n_classes: int) -> Floats:
    """What of the variance lies between labels, but for constants, for each labelling."""
    member_PKN = (label_PN[:, None, :] == np.arange(n_classes)[None, :, None]).astype(np.float32)
    count_PK = member_PKN.sum(axis=2, dtype=np.float64)
    sums_PKD = (member_PKN.reshape(-1, len(z_ND)) @ z_ND).reshape(*count_PK.shape, -1)
    spread_P: Floats = (np.square(sums_PKD, dtype=np.float64).sum(axis=2) / np.maximum(count_PK, 1)).sum(axis=1)
    return spread_P


def _portions(total: int, most: int) -> Iterator[int]:
    for begin in range(0, total, most):
        yield min(most, total - begin)


def _silhouette(z_ND: NDArray[np.float32], truth_N: NDArray[np.int64], situation_N: NDArray[np.int64]) -> Interval:
    width_N = silhouette_samples(z_ND, truth_N)
    return mean_interval(width_N, situation_N)


def _cosines(means_KD: Floats) -> Floats:
    """Cosines between the directions of labels around the mean of their means."""
    direction_KD = means_KD - means_KD.mean(axis=0)
    length_K = np.linalg.norm(direction_KD, axis=1)
    unit_KD = direction_KD / np.where(length_K > 0, length_K, 1.0)[:, None]
    cosine_KK: Floats = np.clip(unit_KD @ unit_KD.T, -1, 1)
    return cosine_KK


def _grouping(parts: _Parts, classes: Sequence[str]) -> Grouping | None:
    emotions = [name for pair in PAIRS for name in pair]
    if not set(emotions) <= set(classes):
        return None
    places = [classes.index(name) for name in emotions]
    papers = tuple((places[index], places[index + 1]) for index in range(0, len(places), 2))
    pairings = list(_pairings(tuple(places)))

    def contrast(count_K: Floats, sums_KD: Floats, _: float) -> float:
        return _contrast(_cosines(sums_KD / count_K[:, None]), papers)

    count_K, sums_KD = parts.count_BK.sum(axis=0), parts.sums_BKD.sum(axis=0)
    cosine_KK = _cosines(sums_KD / count_K[:, None])
    own = _contrast(cosine_KK, papers)
    rank = 1 + sum(_contrast(cosine_KK, pairing) > own + 1e-12 for pairing in pairings)
    return Grouping(_jackknife(parts, contrast), rank, len(pairings))


def _pairings(places: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], ...]]:
    """All ways to put an even number of things into pairs."""
    if not places:
        yield ()
        return
    first, others = places[0], places[1:]
    for index, second in enumerate(others):
        for rest in _pairings(others[:index] + others[index + 1 :]):
            yield ((first, second), *rest)


def _contrast(cosine_KK: Floats, pairing: Sequence[tuple[int, int]]) -> float:
    within = [cosine_KK[pair] for pair in pairing]
    across = [
        cosine_KK[one, other]
        for first, second in itertools.combinations(pairing, 2)
        for one, other in itertools.product(first, second)
    ]
    return float(np.mean(within) - np.mean(across))


def _gram(hidden_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products of standardised states of each two utterances, those with themselves left out (N, N)."""
    z_ND = _standardised(hidden_ND)
    gram_NN: NDArray[np.float32] = z_ND @ z_ND.T
    np.fill_diagonal(gram_NN, 0)
    return gram_NN


def _similarities(ones: Sequence[NDArray[np.float32]], others: Sequence[NDArray[np.float32]]) -> tuple[tuple[float, ...], ...]:
    """Debiased linear CKA of every gram matrix with every other."""
    own_of = [_hsic(gram, gram) for gram in (*ones, *others)]
    table = [
        [_cka(_hsic(one, other), own_of[row], own_of[len(ones) + column]) for column, other in enumerate(others)]
        for row, one in enumerate(ones)
    ]
    return tuple(tuple(row) for row in table)


def _cka(together: float, one: float, other: float) -> float:
    return float(np.clip(together / np.sqrt(one * other), -1, 1)) if one > 0 and other > 0 else 0.0


def _hsic(one_NN: NDArray[np.float32], other_NN: NDArray[np.float32]) -> float:
    """The unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al. 2012, eq. 5), for zero diagonals."""
    n = len(one_NN)
    row_one_N, row_other_N = one_NN.sum(axis=1, dtype=np.float64), other_NN.sum(axis=1, dtype=np.float64)
    product = float(np.dot(one_NN.ravel(), other_NN.ravel()))
    middle = row_one_N.sum() * row_other_N.sum() / ((n - 1) * (n - 2))
    return float((product + middle - 2 * (row_one_N @ row_other_N) / (n - 2)) / (n * (n - 3)))
