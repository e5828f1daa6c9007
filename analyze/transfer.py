"""Does what a probe learned in one place hold in another? Train on each source, test on every one.

A source is the utterances of a run, or those that a condition picks: the two halves of a keyword contrast are two sources in
one run, two templates are two runs. Each utterance is on the side of the split that its whole run puts it, so a situation
told with its keyword and without stands on one side in both. Neutral utterances belong to every condition of their run:
they are what "with the keyword" and "without" are both told from.

The measurement of "Whether, Not Which" (arXiv 2603.22295) is this one over the keyword condition, with its two questions
side by side: which emotion, and whether there is any.

Shape suffixes: N utterances of a run, M utterances scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analyze.balance import NEUTRAL
from analyze.examples import Examples, folds, labelled_examples, split_examples
from analyze.fitting import Fit, Probe, prepare, read_probabilities, solve
from analyze.mapping import Mapper, ignore, in_threads
from analyze.moments import Floats, Target
from analyze.probes import DEFAULT, ProbeSpec
from analyze.query import Run
from analyze.scores import Interval, area_interval, difference_interval, share_interval
from analyze.selection import choose_strength
from analyze.states import States, states_of

_N_FOLDS = 5
_FEWEST = 2
_MOST_VALUES = 12


@dataclass(frozen=True, slots=True)
class Source:
    """Utterances to train on and to test on."""

    name: str
    """What tables call it."""
    run: Run
    """Where their states are."""
    where: str | None = None
    """A SQL condition over the columns of the run's utterances; None for all of them."""


def by_values(run: Run, column: str) -> list[Source]:
    """One source for each value of a column, such as the two of `keyword`.

    Raises:
        ValueError: there is no such column, or it does not tell utterances with a label apart.
    """
    table = run.utterances()
    if column not in table.column_names:
        raise ValueError(f"run {run.run_id} has no column {column!r}; it has {', '.join(table.column_names)}")
    if "label" not in table.column_names:
        raise ValueError(f"the corpus of run {run.run_id} has no column 'label', which this analysis needs")
    with_emotion = table.filter(pc.not_equal(table["label"], NEUTRAL))  # and no null, which is not unequal to anything
    try:
        values = sorted(set(with_emotion[column].cast(pa.string()).drop_null().to_pylist()))
    except pa.ArrowException as error:
        raise ValueError(f"column {column!r} holds {table[column].type}, whose values are no conditions") from error
    if not _FEWEST <= len(values) <= _MOST_VALUES:
        raise ValueError(
            f"column {column!r} has {len(values):,} values among utterances with an emotion; a transfer needs {_FEWEST} to "
            f"{_MOST_VALUES}"
        )
    return [Source(f"{column}={value}", run, f"CAST({_quoted(column)} AS VARCHAR) = '{_escaped(value)}'") for value in values]


def in_words(source: str) -> str:
    """A source of `by_values` for people: `with keyword` for `keyword=true`; any other as it is."""
    column, _, value = source.rpartition("=")
    return {"true": f"with {column}", "false": f"without {column}"}.get(value, source) if column else source


@dataclass(frozen=True, slots=True)
class TransferCell:
    """A probe of one source on the test utterances of another, at one layer."""

    layer: int
    """Which."""
    train: str
    """The source it was fitted to."""
    test: str
    """The source it was scored on."""
    accuracy: Interval
    """Share of utterances whose likeliest class is the true one."""
    auroc: Interval
    """Mean over classes of the one-vs-rest area under the ROC curve."""
    loss: Interval
    """Accuracy of the probe that was fitted to the tested source itself, less this one's; paired by utterance."""
    affect_auroc: Interval | None
    """AUROC of emotion against neutral, from probes of that question; None where there is no neutral."""


@dataclass(frozen=True, slots=True)
class TransferResult:
    """What holds where."""

    site: str
    """Where the states were read."""
    spec: ProbeSpec
    """Which probe."""
    classes: tuple[str, ...]
    """The labels that every source has."""
    sources: tuple[str, ...]
    """The sources, in order."""
    run_ids: tuple[str, ...]
    """The run of each source."""
    n_train: tuple[int, ...]
    """Utterances of each source that its probe was fitted to."""
    n_test: tuple[int, ...]
    """Utterances of each source that probes were scored on."""
    best_layers: tuple[int, ...]
    """The layer at which each source's own probe is best, by cross-validation inside its training utterances."""
    cells: tuple[TransferCell, ...]
    """By layer, then by the source trained on, then by the source tested on."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, ascending."""
        return tuple(sorted({cell.layer for cell in self.cells}))

    def cell(self, layer: int, train: str, test: str) -> TransferCell:
        """One of the cells."""
        return next(cell for cell in self.cells if (cell.layer, cell.train, cell.test) == (layer, train, test))


@dataclass(frozen=True, slots=True)
class _Part:
    """A source's place among the examples of its run."""

    source: Source
    examples: Examples
    """Of the whole run, of the classes that count."""
    train_N: NDArray[np.bool_]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Layer:
    """What is known of one layer."""

    cells: list[TransferCell]
    selection: list[float]
    """Accuracy of each source's probe by cross-validation."""


def measure_transfer(
    sources: Sequence[Source],
    site: str,
    layers: Sequence[int],
    spec: ProbeSpec = DEFAULT,
    on_layer: Callable[[int], None] = ignore,
    mapper: Mapper = in_threads,
) -> TransferResult:
    """Train on each source, test on every one.

    Args:
        sources: two or more, of different names; of models with states of one width.
        on_layer: called with the number of layers done, as they are done.
        mapper: where layers are done; the numbers are the same everywhere.

    Raises:
        ValueError: a source's run is not complete, lacks the site or a layer, or has states of another width; or sources share
            fewer than two classes of which each has training and test utterances.
    """
    spec.check()
    _check(sources, site, layers)
    parts = _parts(sources)
    classes = parts[0].examples.classes
    done = mapper(_Work(parts, classes, site, spec), layers, on_layer)
    selection_LS = np.array([layer.selection for layer in done])
    return TransferResult(
        site=site,
        spec=spec,
        classes=classes,
        sources=tuple(source.name for source in sources),
        run_ids=tuple(source.run.run_id for source in sources),
        n_train=tuple(int(part.train_N.sum()) for part in parts),
        n_test=tuple(len(part.test) for part in parts),
        best_layers=tuple(layers[int(best)] for best in selection_LS.argmax(axis=0)),
        cells=tuple(cell for layer in done for cell in layer.cells),
    )


class _Work:
    """What is done at each layer."""

    def __init__(self, parts: Sequence[_Part], classes: Sequence[str], site: str, spec: ProbeSpec) -> None:
        self._parts, self._classes, self._site, self._spec = parts, classes, site, spec
        self._with_affect = NEUTRAL in classes and len(classes) > 2

    def __call__(self, layer: int) -> _Layer:
        """Train and test every source at one layer."""
        states = {id(part.source.run): self._states(part, layer) for part in self._parts}
        fitted = [self._fitted(part, states[id(part.source.run)]) for part in self._parts]
        probes = [probe for probes, _ in fitted for probe in probes]
        said = [
            read_probabilities(states[id(part.source.run)], [(probe, part.test) for probe in probes]) for part in self._parts
        ]
        n_each = len(fitted[0][0])
        cells = [
            self._cell(layer, train, test, said[test][train * n_each : (train + 1) * n_each], said[test][test * n_each])
            for train in range(len(self._parts))
            for test in range(len(self._parts))
        ]
        return _Layer(cells, [accuracy for _, accuracy in fitted])

    def _states(self, part: _Part, layer: int) -> States:
        return states_of(part.source.run, self._site, layer, part.examples.rows)

    def _fitted(self, part: _Part, states: States) -> tuple[list[Probe], float]:
        """The probe of the classes and, where there is neutral, that of affect; and the first one's accuracy by validation."""
        truth, train = Target(part.examples.truth, len(self._classes)), np.flatnonzero(part.train_N)
        parted = folds(part.examples.truth[train], part.examples.groups[train], _N_FOLDS)
        held_out = [train[places] for _, places in parted]
        fits = [Fit(part.train_N, truth)]
        if self._with_affect:
            fits.append(Fit(part.train_N, Target((part.examples.labels != NEUTRAL).astype(np.int64), 2)))
        n_whole = len(fits)
        fits += [Fit(part.train_N & ~np.isin(np.arange(states.n_rows), rows), truth) for rows in held_out]
        prepared, spec = prepare(states, fits), self._spec
        fold_fits = range(n_whole, len(fits))
        strength, right_N = choose_strength(prepared, fold_fits, held_out, spec.kind, spec.strength, spec.solver)
        probes = solve(prepared, [(index, strength) for index in range(n_whole)], spec.kind, spec.solver)
        return probes, float(right_N[train].mean())

    def _cell(self, layer: int, train: int, test: int, said: Sequence[Floats], own_MK: Floats) -> TransferCell:
        part = self._parts[test]
        truth_M, groups_M = part.examples.truth[part.test], part.examples.groups[part.test]
        right_M, own_right_M = (scores.argmax(axis=1) == truth_M for scores in (said[0], own_MK))
        affect = None
        if self._with_affect:
            affect = area_interval((part.examples.labels[part.test] != NEUTRAL).astype(np.int64), said[1], groups_M)
        return TransferCell(
            layer=layer,
            train=self._parts[train].source.name,
            test=part.source.name,
            accuracy=share_interval(right_M, groups_M),
            auroc=area_interval(truth_M, said[0], groups_M),
            loss=Interval(0.0, 0.0, 0.0)
            if train == test
            else difference_interval(own_right_M.astype(np.float64) - right_M, groups_M),
            affect_auroc=affect,
        )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _escaped(text: str) -> str:
    return text.replace("'", "''")


def _check(sources: Sequence[Source], site: str, layers: Sequence[int]) -> None:
    if len({source.name for source in sources}) < max(len(sources), _FEWEST):
        raise ValueError("a transfer needs two sources or more, each with a name of its own")
    for source in sources:
        source.run.require_complete()
        missing = sorted(set(layers) - set(source.run.layers_of(site)))
        if missing:
            raise ValueError(f"run {source.run.run_id} does not hold layer {missing[0]} of {site}, which the other source has")
    widths = {source.run.manifest.width for source in sources}
    if len(widths) > 1:
        raise ValueError(
            f"the sources' states are {' and '.join(map(str, sorted(widths)))} wide: a probe of one model cannot read another "
            "of a different width; compare their layers by similarity instead"
        )


def _parts(sources: Sequence[Source]) -> list[_Part]:
    """Each source among the examples of its run, all of them of the classes that every source has."""
    whole = {id(source.run): labelled_examples(source.run) for source in sources}
    chosen = [_chosen(source, whole[id(source.run)]) for source in sources]
    of_each = [set(whole[id(source.run)].labels[mine].tolist()) for source, mine in zip(sources, chosen, strict=True)]
    shared = set.intersection(*of_each)
    if len(shared) < _FEWEST:
        raise ValueError(f"the sources share {len(shared)} labels; a probe needs two or more that each of them has")
    tests = {id(source.run): split_examples(whole[id(source.run)]).test for source in sources}
    held_out = {id(source.run): _names(source.run, whole[id(source.run)], tests[id(source.run)]) for source in sources}
    parts = []
    for source, mine_N in zip(sources, chosen, strict=True):
        examples, test_N = whole[id(source.run)], tests[id(source.run)]
        elsewhere = set().union(*(names for run, names in held_out.items() if run != id(source.run)))
        train_N = mine_N & ~test_N & ~_among(source.run, examples, elsewhere)
        kept_N = np.isin(examples.labels, sorted(shared))
        part = _Part(source, examples.take(kept_N), train_N[kept_N], np.flatnonzero((mine_N & test_N)[kept_N]))
        _check_part(part)
        parts.append(part)
    return parts


def _names(run: Run, examples: Examples, some_N: NDArray[np.bool_]) -> set[tuple[str, str]]:
    """What some utterances of a run are called, and their pairs: by these another run knows them again."""
    return {name for own, some in zip(_named(run, examples), some_N.tolist(), strict=True) if some for name in own}


def _among(run: Run, examples: Examples, names: set[tuple[str, str]]) -> NDArray[np.bool_]:
    """Which utterances are called so, or tell the same situation: what another source is tested on is not trained on."""
    return np.array([bool(names & set(own)) for own in _named(run, examples)], np.bool_)


def _named(run: Run, examples: Examples) -> list[tuple[tuple[str, str], ...]]:
    table = run.utterances().take(pa.array(examples.rows))
    columns = [(name, table[name].to_pylist()) for name in ("utterance_id", "pair_id") if name in table.column_names]
    return [
        tuple((name, str(values[row])) for name, values in columns if values[row] is not None) for row in range(table.num_rows)
    ]


def _chosen(source: Source, examples: Examples) -> NDArray[np.bool_]:
    if source.where is None:
        return np.ones(len(examples.rows), np.bool_)
    rows = source.run.utterances(source.where)["row"].to_numpy()
    return np.asarray(np.isin(examples.rows, rows) | (examples.labels == NEUTRAL))


def _check_part(part: _Part) -> None:
    for name in part.examples.classes:
        mine_N = part.examples.labels == name
        n_train, n_test = int((mine_N & part.train_N).sum()), int(mine_N[part.test].sum())
        n_situations = len(np.unique(part.examples.groups[mine_N & part.train_N]))
        if n_situations < _FEWEST or n_test < 1:
            raise ValueError(
                f"source {part.source.name!r} has {n_train} training and {n_test} test utterances of label {name!r}; a "
                f"transfer needs {_FEWEST} situations to train on and 1 to test on"
            )
