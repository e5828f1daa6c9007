"""The pictures about probes, each with the words that say how to read it.

A picture and its caption are made in one place, so that neither can be changed and the other forgotten. The picture of a
persistence measurement is made with its section.
"""

from collections.abc import Sequence

from analyze import drawing, plots
from analyze.probes import ProbeResult
from analyze.projection import Projection
from analyze.report.page import Picture
from analyze.report.words import noun


def layer_map(best: ProbeResult, probes: Sequence[ProbeResult]) -> Picture:
    """Accuracy and AUROC of every probe by layer."""
    what = "an emotion" if noun(best.classes) == "emotion" else "a label"
    return Picture(
        png=drawing.png(plots.layer_map(probes, f"Where {what} can be read: a probe on every layer")),
        alternative=f"Accuracy and AUROC of probes against layer. {best.site} is best at layer {best.best_layer}.",
        caption=(
            f"Top: accuracy on {best.n_test:,} test utterances with 95% intervals over situations; dashed, the same probes "
            "fitted to shuffled labels. Below: how well each label is told from all others at each layer (area under the "
            "ROC curve; 0.5 is chance). The best layer is chosen by cross-validation inside the training split."
        ),
    )


def confusion(best: ProbeResult) -> Picture:
    """What the probe takes for what at its best layer."""
    return Picture(
        png=drawing.png(plots.confusion_matrix(best)),
        alternative=f"Confusion matrix of {best.site} at layer {best.best_layer}.",
        caption=f"Test utterances by true label (rows) and by the label the probe names. {_worst_mistake(best)}",
        width=min(760, 300 + 62 * max(len(best.classes), 4)),
    )


def projection(result: Projection) -> Picture:
    """Test utterances in the plane."""
    return Picture(
        png=drawing.png(plots.projection(result)),
        alternative=f"Two projections of the test utterances of {result.site} at layer {result.layer}.",
        caption=(
            f"{result.site}, layer {result.layer}, test utterances only. Left: principal components of the standardised "
            f"hidden states, {sum(result.states_variance):.0%} of their variance; axes of large variance need not be those "
            "that separate labels. Right: principal components of the probe's class probabilities, "
            f"{sum(result.probabilities_variance):.0%} of their variance; the probe was fitted to pull labels apart, so "
            "distances there are its own and not the model's."
        ),
    )


def _worst_mistake(probe: ProbeResult) -> str:
    mistakes = [
        (count, sum(row), true, named)
        for true, row in zip(probe.classes, probe.best.test.confusion, strict=True)
        for named, count in zip(probe.classes, row, strict=True)
        if named != true
    ]
    count, size, true, named = max(mistakes, key=lambda mistake: mistake[0])
    if not count:
        return "There is no mistake."
    return f"The commonest mistake: {true} taken for {named}, {count:,} of {size:,}."
