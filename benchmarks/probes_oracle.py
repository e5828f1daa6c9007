"""Our probes beside scikit-learn's at the same regularisation: accuracy, log loss and coefficients, layer by layer.

    python benchmarks/probes_oracle.py STORE RUN [--site resid.last] [--layers 0,8,16,24,30]

RUN is a run with labels and a split. Each probe is fitted to its training utterances twice, by our solver as it always computes
and by scikit-learn's in float64 to a tolerance of 1e-6, and scored on the test utterances.
"""

import argparse
import os
from datetime import UTC, datetime

import numpy as np
from first_run import commit, processor
from rich.console import Console
from rich.table import Table
from sklearn.metrics import log_loss

from analyze.examples import labelled_examples, split_examples
from analyze.fitting import SOLVERS, Fit, prepare, read_probabilities, solve
from analyze.linear import LinearProbe
from analyze.moments import Target
from analyze.query import open_store
from analyze.states import states_of
from extract.sites import parse_layers

_PROBES = (("linear", 0.1), ("ridge", 100.0), ("logistic", 0.01), ("logistic", 0.1))


def main() -> None:
    """Fit, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("--site", default="resid.last")
    parser.add_argument("--layers", default="0,8,16,24,30")
    arguments = parser.parse_args()
    run = open_store(arguments.store).run(arguments.run)
    examples = labelled_examples(run)
    test_N, truth_N = split_examples(examples).test, examples.truth
    console = Console(highlight=False, width=128)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    console.print(
        f"{run.manifest.model}, {arguments.site}, {int((~test_N).sum()):,} training and {int(test_N.sum()):,} test utterances, "
        f"{len(examples.classes)} labels"
    )
    shown = Table(
        "probe", "strength", "layer", "accuracy", "scikit-learn", "points", "log loss", "scikit-learn", "ratio", "coefficients"
    )
    for layer in parse_layers(arguments.layers, run.manifest.n_layers):
        states = states_of(run, arguments.site, layer, examples.rows)
        prepared = prepare(states, [Fit(~test_N, Target(truth_N, len(examples.classes)))])
        for kind, strength in _PROBES:
            ours, theirs = (solve(prepared, [(0, strength)], kind, solver)[0] for solver in SOLVERS)
            said = read_probabilities(states, [(ours, np.flatnonzero(test_N)), (theirs, np.flatnonzero(test_N))])
            right = [float((share_NK.argmax(axis=1) == truth_N[test_N]).mean()) for share_NK in said]
            losses = ["", "", ""]
            if ours.gives == "logits":
                mine, other = (float(log_loss(truth_N[test_N], share_NK)) for share_NK in said)
                losses = [f"{mine:.4f}", f"{other:.4f}", f"{mine / other:.4f}"]
            assert isinstance(ours, LinearProbe)
            assert isinstance(theirs, LinearProbe)
            shown.add_row(
                kind,
                f"{strength:g}",
                str(layer),
                f"{right[0]:.4f}",
                f"{right[1]:.4f}",
                f"{100 * (right[0] - right[1]):+.2f}",
                *losses,
                f"{apart(ours, theirs):.1e}",
            )
    console.print(shown)


def apart(ours: LinearProbe, theirs: LinearProbe) -> float:
    """How far the coefficients differ, relative to their size, but for what all classes share and a softmax does not see."""
    one, other = (probe.weight_DK - probe.weight_DK.mean(axis=1, keepdims=True) for probe in (ours, theirs))
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


if __name__ == "__main__":
    main()
