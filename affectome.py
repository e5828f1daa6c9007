"""affectome maps where a language model keeps emotion. For notebooks: `open`, `extract`, `analyze`.

import affectome
run = affectome.extract(corpus="builtin", store="emotion")
X = run.hidden(site="resid.last", layer=12, where="label = 'joy' and split = 'test'")
result = affectome.analyze(run, site="resid.last")
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyze.multilabel import MultiLabelResult
    from analyze.probes import ProbeResult
    from analyze.query import Run, Store
    from analyze.valued import ValueResult

__all__ = ["analyze", "extract", "open"]


def _check_siblings() -> None:
    """The installed packages have everyday names, which a user's own `analyze.py` beside a notebook would shadow."""
    here = Path(__file__).resolve().parent
    for name in ("extract", "analyze", "cluster"):
        found = importlib.util.find_spec(name)
        origin = Path(found.origin).resolve() if found is not None and found.origin else None
        if origin != here / name / "__init__.py":
            found_what = f"found {origin}: rename that file or folder, or start Python in another directory"
            raise ImportError(
                f"affectome needs its own package {name!r}, but {found_what if origin else 'it is not installed'}"
            )


_check_siblings()


def open(location: str | Path) -> "Store":  # noqa: A001 - the name users expect: affectome.open
    """Open a store for reading: `affectome.open("emotion").run("3f9c")`.

    Raises:
        ValueError: there is no store there.
    """
    from analyze.query import open_store

    return open_store(str(location))


def extract(
    *,
    corpus: str,
    store: str,
    model: str = "smollm2-135m-instruct",
    workers: int | None = None,
    address: str | None = None,
    **options: Any,
) -> "Run":
    """Run a model over a corpus, keep its hidden states, and return the run, finished.

    Args:
        corpus: `builtin`, or a path or URL of a Parquet, JSONL or CSV file.
        store: the store's directory or URL; made where there is nothing yet.
        model: name, directory or hub id.
        workers: most workers, on a Ray that is started here; without it and `address`, this process computes.
        address: a running Ray to compute on, such as `auto`.
        options: further fields of extract.request.Request, such as `sites`, `layers`, `template`, `system`, `truncate`.

    Raises:
        ValueError: something asked for cannot be; nothing was written.
        RuntimeError: shards failed again and again; all others exist.
    """
    from analyze.query import Run
    from cluster.execution import Execution
    from cluster.launch import extract as extract_run
    from extract.corpus import read_corpus
    from extract.request import Request

    return Run(extract_run(Request(model=model, corpus=read_corpus(corpus), **options), store, Execution(workers, address)))


def analyze(
    run: "Run", *, site: str = "resid.last", kind: str | None = None, label: str = "label"
) -> "ProbeResult | MultiLabelResult | ValueResult":
    """Fit and score a probe on every layer of a run.

    Args:
        kind: linear, ridge, difference, logistic or mlp; without it linear, and ridge for numbers.
        label: what to read, a column of the corpus: of text (one class each), of lists of text, or of numbers.

    Raises:
        ValueError: the run is not finished, has no usable labels, or lacks the site.
    """
    from analyze.columns import CLASSES, SETS, form_of, usual_kind
    from analyze.multilabel import probe_sets
    from analyze.probes import ProbeSpec, probe_layers
    from analyze.valued import probe_values

    form, spec, layers = form_of(run, label), ProbeSpec(kind or usual_kind(run, label), column=label), run.layers_of(site)
    if form == CLASSES:
        return probe_layers(run, site, layers, spec).result
    return probe_sets(run, site, layers, spec).result if form == SETS else probe_values(run, site, layers, spec).result


def main() -> None:
    """The command line."""
    from cluster.cli import main as command_line

    command_line()
