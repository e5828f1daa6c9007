"""Probes on every layer beside scikit-learn's LogisticRegression layer by layer, and the same numbers from both.

    python benchmarks/probes.py STORE RUN [--site resid.last] [--rows 50000] [--layers all] [--peer-layers all]

RUN is a run with labels, such as those that `affectome extract` or benchmarks/scale.py make. Everything is fitted to four
fifths of the rows and scored on the rest, all sides with both cores and the same regularisation; reading the states from the
store counts for us, and for scikit-learn it does not. `closed form` is discriminant analysis, `logistic` the same optimum that
scikit-learn seeks. scikit-learn runs as a user would write it, float32 and its default tolerance, with max_iter=1000, one layer
after another on both cores; `--peer-layers` times it on fewer layers and says how many.

Shape suffixes: N rows, D width.
"""

import argparse
import os
import resource
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from first_run import commit, processor
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from analyze.fitting import Fit, prepare, read_probabilities, solve
from analyze.mapping import in_threads
from analyze.moments import Target
from analyze.query import Run, open_store
from analyze.states import states_of
from extract.sites import parse_layers

_SHRINKAGE = 0.1
_NAMES = {"linear": "closed form", "logistic": "logistic"}


@dataclass(frozen=True, slots=True)
class Data:
    """Which rows, and what is read from them."""

    run: Run
    site: str
    rows_N: NDArray[np.int64]
    truth_N: NDArray[np.int64]
    classes: tuple[str, ...]
    train_N: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What one side takes for all layers, and how well it reads each."""

    seconds: float
    accuracy: list[float]
    loss: list[float]


def main() -> None:
    """Do it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("--site", default="resid.last")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--kinds", default="linear,logistic", help="ours to time")
    parser.add_argument("--peer-layers", default="all", help="layers scikit-learn is timed on; none for ours alone")
    parser.add_argument("--c", type=float, default=1.0, help="C of logistic regression on both sides; 1 is scikit-learn's own")
    arguments = parser.parse_args()
    data = labelled(open_store(arguments.store).run(arguments.run), arguments.site, arguments.rows)
    layers = chosen(data, arguments.layers)
    peers = [] if arguments.peer_layers == "none" else chosen(data, arguments.peer_layers)
    console = Console(highlight=False, width=128)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    console.print(
        f"{data.run.manifest.model}, {data.site}, {len(data.rows_N):,} rows x {len(layers)} layers x "
        f"{data.run.manifest.width}, "
        f"{len(data.classes)} classes, C={arguments.c:g}, shrinkage {_SHRINKAGE:g}"
    )
    strength = {"linear": _SHRINKAGE, "logistic": arguments.c}
    ours = {_NAMES[kind]: fit_all(data, layers, kind, strength[kind]) for kind in arguments.kinds.split(",")}
    console.print(f"peak memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    theirs = fit_all_with_scikit_learn(data, peers, arguments.c) if peers else None
    console.print(table(layers, ours, peers, theirs))


def labelled(run: Run, site: str, n_rows: int) -> Data:
    """The first labelled rows of a run."""
    labels = np.array([label or "" for label in run.utterances()["label"].to_pylist()])
    rows = np.flatnonzero(labels != "")[:n_rows]
    classes, truth = np.unique(labels[rows], return_inverse=True)
    return Data(run, site, rows, truth, tuple(classes.tolist()), np.arange(len(rows)) % 5 != 0)


def chosen(data: Data, text: str) -> Sequence[int]:
    """Layers as the command line writes them."""
    return data.run.layers_of(data.site) if text == "all" else parse_layers(text, data.run.manifest.n_layers)


def fit_all(data: Data, layers: Sequence[int], kind: str, strength: float) -> Fitted:
    """Read, fit and score every layer, as many at a time as there are cores."""
    target, test = Target(data.truth_N, len(data.classes)), np.flatnonzero(~data.train_N)

    def fit(layer: int) -> tuple[float, float]:
        states = states_of(data.run, data.site, layer, data.rows_N)
        (probe,) = solve(prepare(states, [Fit(data.train_N, target)]), [(0, strength)], kind)
        (share_NK,) = read_probabilities(states, [(probe, test)])
        return scores(share_NK, data.truth_N[test])

    began = time.perf_counter()
    found = in_threads(fit, layers)
    return Fitted(time.perf_counter() - began, *(list(values) for values in zip(*found, strict=True)))


def fit_all_with_scikit_learn(data: Data, layers: Sequence[int], c: float) -> Fitted:
    """The same, one layer after another; states in memory and standardised before the clock starts."""
    seconds, found = 0.0, []
    for layer in layers:
        hidden_ND = data.run.hidden_rows(data.site, layer, data.rows_N)
        mean_D = hidden_ND[data.train_N].mean(axis=0, dtype=np.float64)
        spread_D = hidden_ND[data.train_N].std(axis=0, dtype=np.float64)
        scaled_ND = ((hidden_ND - mean_D) / np.where(spread_D > 0, spread_D, 1)).astype(np.float32)
        train_ND, test_ND = scaled_ND[data.train_N], scaled_ND[~data.train_N]
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier = LogisticRegression(C=c, max_iter=1000).fit(train_ND, data.truth_N[data.train_N])
        share_NK = classifier.predict_proba(test_ND)
        seconds += time.perf_counter() - began
        found.append(scores(share_NK, data.truth_N[~data.train_N]))
    return Fitted(seconds, *(list(values) for values in zip(*found, strict=True)))


def scores(share_NK: NDArray[np.floating], truth_N: NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and log loss."""
    return float((share_NK.argmax(axis=1) == truth_N).mean()), float(
        log_loss(truth_N, share_NK, labels=range(share_NK.shape[1]))
    )


def table(layers: Sequence[int], ours: dict[str, Fitted], peers: Sequence[int], theirs: Fitted | None) -> Table:
    """One row for each side; ratios are of seconds a layer."""
    shown = Table("probe", "layers", "seconds", "seconds a layer", "times faster", "accuracy, mean", "log loss, mean")
    for name, fitted in ours.items():
        same = [index for index, layer in enumerate(layers) if layer in peers] or range(len(layers))
        faster = "" if theirs is None else f"{theirs.seconds / len(peers) / (fitted.seconds / len(layers)):.1f}"
        shown.add_row(
            name,
            str(len(layers)),
            f"{fitted.seconds:.1f}",
            f"{fitted.seconds / len(layers):.2f}",
            faster,
            f"{statistics.mean(fitted.accuracy[index] for index in same):.4f}",
            f"{statistics.mean(fitted.loss[index] for index in same):.4f}",
        )
    if theirs is not None:
        shown.add_row(
            "scikit-learn",
            str(len(peers)),
            f"{theirs.seconds:.1f}",
            f"{theirs.seconds / len(peers):.2f}",
            "1",
            f"{statistics.mean(theirs.accuracy):.4f}",
            f"{statistics.mean(theirs.loss):.4f}",
        )
    return shown


if __name__ == "__main__":
    main()
