"""What the probes found, in sentences and tables: where it can be read, from which layer on, and how sure that is.

Every sentence that claims something is computed from the results, intervals included: where two intervals overlap the
report says that nothing is decided. Fixed prose around inserted numbers was rejected, because it goes on saying
"best" and "far above chance" about a run where neither is true.
"""

from collections.abc import Iterator, Sequence

from analyze.plots import probe_names
from analyze.probes import LayerScores, ProbeResult
from analyze.report.page import Table
from analyze.report.words import (
    layer_cell,
    layers_of,
    noun,
    ranges,
    score,
    share,
    share_cell,
    share_range,
    signed_share,
    signed_share_cell,
)
from analyze.scores import Interval, Scores
from analyze.where import PLATEAU_SHARE, Where
from extract.sites import Site

_NOTHING = "\N{EN DASH}"
_LAYER_ZERO = {
    "mean": "the mean of the token embeddings: a bag of words, so what it gives is lexical",
    "last": "the embedding of the last token alone",
    "first": "the embedding of the first token alone",
    "prompt_last": "the embedding of the prompt's last token alone",
    "prompt_mean": "the mean of the prompt's token embeddings: a bag of words, so what it gives is lexical",
}
"""What the embedding output is at each position."""


def headline_probe(probes: Sequence[ProbeResult]) -> ProbeResult:
    """The probe the report is about: that of the highest selection accuracy, which the test split has no part in."""
    return max(probes, key=lambda probe: probe.best.selection_accuracy)


def headline(probe: ProbeResult, n_layers: int) -> str:
    """The result in plain numbers.

    Args:
        n_layers: blocks of the model.
    """
    test, control = probe.best.test.accuracy, probe.best.control.accuracy
    sentence = (
        f"At layer {probe.best_layer} of {n_layers}, a {probe.kind} probe on {probe.site} names the {noun(probe.classes)} of "
        f"{test.value:.0%} of {probe.n_test:,} unseen utterances (95% interval {share_range(test)}); "
        f"chance is {probe.chance:.0%}, a probe fitted to shuffled labels gets {control.value:.0%}."
    )
    if test.low <= control.high:
        sentence += " The intervals of the two overlap: nothing is shown to be readable here."
    return sentence


def first_readable(probe: ProbeResult) -> LayerScores | None:
    """The first layer whose accuracy interval lies above that of its control."""
    return next((entry for entry in probe.layers if entry.test.accuracy.low > entry.control.accuracy.high), None)


def lead(best: ProbeResult, probes: Sequence[ProbeResult]) -> tuple[str, ...]:
    """How the other probes compare with the best."""
    best_name = next(name for name, probe in _named(probes) if probe is best)
    return tuple(_comparison(best_name, best, name, probe) for name, probe in _named(probes) if probe is not best)


def where(probes: Sequence[ProbeResult]) -> tuple[str, ...]:
    """Onset, best layer and layer 0 of every probe."""
    return tuple(f"{name}: {sentence}" for name, probe in _named(probes) for sentence in _where_one(probe))


def best_table(probes: Sequence[ProbeResult]) -> Table:
    """The best layer of every probe."""
    rows = []
    for name, probe in _named(probes):
        best, where = probe.best, probe.where
        cells = (signed_share_cell(best.selectivity), "none" if where is None else layer_cell(where.onset))
        rows.append((name, str(probe.best_layer), *_cells(best), *cells))
    header = ("site", "best layer", "accuracy", "macro-F1", "AUROC", "control accuracy", "selectivity", "onset layer")
    return Table("", header, tuple(rows))


def layer_tables(probes: Sequence[ProbeResult]) -> tuple[Table, ...]:
    """All layers, one table for each probe."""
    return tuple(
        Table(
            caption=f"{name}, {probe.kind} probe; chance {probe.chance:.1%}; the best layer is set off",
            header=(
                "layer",
                "accuracy",
                "macro-F1",
                "AUROC",
                "control accuracy",
                "selectivity",
                "log loss",
                "calibration error",
                "emotion or neutral: AUROC",
            ),
            rows=tuple((str(entry.layer), *_cells(entry), *_more_cells(entry)) for entry in probe.layers),
            marked=tuple(row for row, entry in enumerate(probe.layers) if entry.layer == probe.best_layer),
        )
        for name, probe in _named(probes)
    )


def _named(probes: Sequence[ProbeResult]) -> Iterator[tuple[str, ProbeResult]]:
    return zip(probe_names(probes), probes, strict=True)


def _cells(entry: LayerScores) -> tuple[str, str, str, str]:
    test, control = entry.test, entry.control
    return share_cell(test.accuracy), score(test.macro_f1), score(test.auroc), share_cell(control.accuracy)


def _more_cells(entry: LayerScores) -> tuple[str, str, str, str]:
    test, affect = entry.test, entry.affect
    return (
        signed_share_cell(entry.selectivity),
        _NOTHING if test.log_loss is None else score(test.log_loss),
        _NOTHING if test.calibration_error is None else share_cell(test.calibration_error),
        _NOTHING if affect is None else score(affect.auroc),
    )


def _comparison(best_name: str, best: ProbeResult, name: str, probe: ProbeResult) -> str:
    highest, accuracy = best.best.test.accuracy, probe.best.test.accuracy
    said = f"{name} is best at layer {probe.best_layer}, with {share(accuracy)}"
    if highest.low > accuracy.high:
        return f"{said}: less than {best_name}."
    if accuracy.low > highest.high:
        return f"{said}: more than {best_name}, although {best_name} was ahead on the utterances the layers are chosen by."
    return f"{said}. The intervals overlap, so these results do not say which of {best_name} and {name} is better."


def _where_one(probe: ProbeResult) -> Iterator[str]:
    yield _first_readable_sentence(first_readable(probe))
    if probe.where is not None:
        yield _location_sentence(probe.where)
    top = probe.best.test
    yield (
        f"best layer {probe.best_layer}, with {share(top.accuracy)}, macro-F1 {score(top.macro_f1)} and AUROC "
        f"{score(top.auroc)}. {_neighbours(probe)}{_luckiest(probe)}"
    )
    yield _selectivity_sentence(probe.best)
    if probe.best.affect is not None:
        yield _affect_sentence(probe, probe.best.affect)
    if probe.layers[0].layer == 0:
        yield _layer_zero(probe)


def _first_readable_sentence(first: LayerScores | None) -> str:
    if first is None:
        return "no layer's accuracy interval lies above that of the same probe on shuffled labels."
    return (
        f"readable first at layer {first.layer}, whose accuracy, {share(first.test.accuracy)}, lies above that of the same "
        "probe "
        f"on shuffled labels, {share(first.control.accuracy)}, interval and all."
    )


def _location_sentence(where: Where) -> str:
    start, stop = where.plateau_start, where.plateau_stop
    return (
        f"by cross-validation inside the training split, onset (half of the peak's accuracy above chance) at layer "
        f"{layer_cell(where.onset)}, peak at {layer_cell(where.peak)}, and {PLATEAU_SHARE:.0%} of the peak kept from layer "
        f"{layer_cell(start)} to {layer_cell(stop)}; in brackets 95% intervals."
    )


def _selectivity_sentence(best: LayerScores) -> str:
    said = (
        f"selectivity at the best layer, accuracy less that of a probe of the same size for a random class of every first word "
        f"({share(best.task)}): {signed_share(best.selectivity)}."
    )
    if best.selectivity.low > 0:
        return said
    if best.selectivity.high < 0:
        return f"{said} Mere word identity is read better."
    return f"{said} The interval includes 0: mere word identity is read as well."


def _affect_sentence(probe: ProbeResult, affect: Scores) -> str:
    above = [entry.layer for entry in probe.layers if entry.affect is not None and entry.affect.auroc.low > 0.5]
    from_where = f"above chance at {layers_of(above)}" if above else "above chance at no layer"
    return (
        f"emotion against neutral at the best layer: AUROC {score(affect.auroc)}; {from_where}, each interval by itself: of "
        f"{len(probe.layers)} layers without signal about {len(probe.layers) / 40:.0f} would be, too."
    )


def _neighbours(probe: ProbeResult) -> str:
    top = probe.best.test.accuracy
    near = [entry.layer for entry in probe.layers if entry.layer != probe.best_layer and _overlap(entry.test.accuracy, top)]
    if not near:
        return "No other layer's interval overlaps its interval."
    return f"The intervals of layer{'s' if len(near) > 1 else ''} {ranges(near)} overlap its interval."


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high


def _luckiest(probe: ProbeResult) -> str:
    highest = max(probe.layers, key=lambda entry: entry.test.accuracy.value)
    if highest.test.accuracy.value <= probe.best.test.accuracy.value:
        return ""
    return (
        f" Layer {highest.layer} scores higher on the test utterances, {share(highest.test.accuracy)}, but choosing it for "
        "that would be choosing the luckiest of many."
    )


def _layer_zero(probe: ProbeResult) -> str:
    accuracy, control = probe.layers[0].test.accuracy, probe.layers[0].control.accuracy
    said = f"layer 0 is {_LAYER_ZERO.get(Site.parse(probe.site).position, 'the embedding output')}. It "
    if accuracy.low > control.high:
        said += f"already gives {share(accuracy)}."
    else:
        said += f"gives {share(accuracy)}, not shown to be above its control."
    better = [entry.layer for entry in probe.layers if entry.test.accuracy.low > accuracy.high]
    if not better:
        return (
            f"{said} No layer's interval lies above that: these results do not show that the blocks make the "
            f"{noun(probe.classes)} more readable."
        )
    if better[0] == probe.best_layer:
        return f"{said} The first layer whose interval lies above that is the best layer, {probe.best_layer}."
    ahead = "does too" if probe.best_layer in better else "does not"
    return (
        f"{said} The first layer whose interval lies above that is {better[0]}; that of the best layer, {probe.best_layer}, "
        f"{ahead}."
    )
