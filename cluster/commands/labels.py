"""What affectome probe and predict print of labels that are not one class an utterance: lists of labels, and numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.console import Row, note, print_rows

if TYPE_CHECKING:  # it takes seconds to load
    from analyze.moments import Floats
    from analyze.multilabel import MultiLabelResult
    from analyze.saved import Made
    from analyze.scores import Interval
    from analyze.valued import ValueResult


def print_sets(result: "MultiLabelResult") -> None:
    """Print a table of layers, and one of the labels at the best of them."""
    rows: list[Row] = [
        {
            "layer": entry.layer,
            "auroc_[95%]": _text(entry.test.auroc),
            "macro_f1": entry.test.macro_f1.value,
            "micro_f1": entry.test.micro_f1.value,
            "exact_set": entry.test.exact.value,
            "shuffled_auroc": entry.control.auroc.value,
            "shuffled_exact": entry.control.exact.value,
            "": "<- best" if entry.layer == result.best_layer else "",
        }
        for entry in result.layers
    ]
    sizes = f"{result.n_train:,} train, {result.n_test:,} test"
    what = f"{len(result.classes)} labels of column {result.spec.column}"
    title = f"{result.site}, {result.spec.kind} probes of {what}: {sizes}, chance of an exact set {result.chance:.3f}"
    print_rows(title, rows, as_json=False)
    best = result.best.test
    labels: list[Row] = [
        {"label": label, "carried_by": count, "auroc_[95%]": _text(area), "f1_[95%]": _text(f1)}
        for label, count, area, f1 in zip(result.classes, result.n_carrying, best.label_auroc, best.label_f1, strict=True)
    ]
    print_rows(f"Each label at layer {result.best_layer}, of {result.n_test:,} test utterances", labels, as_json=False)


def print_values(result: "ValueResult") -> None:
    """Print a table of layers."""
    rows: list[Row] = [
        {
            "layer": entry.layer,
            "r2_[95%]": _text(entry.test.r2),
            "r_[95%]": _text(entry.test.correlation),
            "shuffled_r2": entry.control.r2.value,
            "shuffled_r": entry.control.correlation.value,
            "alpha": entry.strength,
            "": "<- best" if entry.layer == result.best_layer else "",
        }
        for entry in result.layers
    ]
    sizes = f"{result.n_train:,} train, {result.n_test:,} test"
    values = f"{result.mean:.3g} on average, spread {result.spread:.3g}"
    print_rows(f"{result.site}, {result.spec.kind} probe of {result.spec.column} ({values}): {sizes}", rows, as_json=False)


def tell_what_is_left_out(result: "MultiLabelResult | ValueResult") -> None:
    """Say on standard error which rows and labels are left out, and why."""
    from analyze.multilabel import MultiLabelResult

    if result.n_unlabelled:
        note(f"left out {result.n_unlabelled:,} rows because they have nothing in column {result.spec.column}")
    if result.n_other_split:
        note(f"left out {result.n_other_split:,} rows because their split is neither train nor test")
    if isinstance(result, MultiLabelResult) and result.left_out:
        rare = [f"{entry.label} ({entry.n_train:,} train, {entry.n_test:,} test)" for entry in result.left_out]
        note(f"left out {len(rare):,} labels because too few utterances carry them, or too few do not: {', '.join(rare)}")


def print_predictions(title: str, form: str, made: "Made", texts: Sequence[str], said_NK: "Floats", as_json: bool) -> None:
    """Print what a probe says of texts: the likeliest class, the labels that are likelier than not, or the number.

    Args:
        form: what the column that it was fitted to holds, one of those of analyze.columns.
    """
    from analyze.columns import CLASSES, NUMBERS

    rows: list[Row] = []
    for text, said_K in zip(texts, said_NK.tolist(), strict=True):
        scores: dict[str, float] = dict(zip(made.classes, said_K, strict=True))
        says: Row = {}
        if form == CLASSES:
            says = {"says": max(scores, key=lambda name: scores[name])}
        elif form != NUMBERS:
            least = 0.5 if made.gives == "log-odds" else 0.0
            says = {"says": [name for name, score in scores.items() if score > least]}
        rows.append({"text": text, **says, **scores})
    what = {"logits": "probabilities", "log-odds": "probabilities", "values": "numbers"}.get(made.gives, "margins")
    print_rows(f"{title}: {what}", rows, as_json)


def _text(interval: "Interval") -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
