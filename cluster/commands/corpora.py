"""affectome corpus check, affectome corpus synth, affectome corpus show."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.compute as pc
import typer

from cluster.commands.options import JsonOption
from cluster.console import Row, note, print_json, print_rows
from extract.corpus import Corpus, read_corpus
from extract.synth import SYNTHETIC, write_corpus

corpora = typer.Typer(no_args_is_help=True, help="Validate, generate and look at corpora.")

CorpusArgument = Annotated[str, typer.Argument(metavar="FILE", help="Parquet, JSONL or CSV, or 'builtin'.")]


@corpora.command("check")
def check(source: CorpusArgument, as_json: JsonOption = False) -> None:
    """Validate a corpus and count what it holds, label by label."""
    _describe(read_corpus(source), as_json)


@corpora.command("synth")
def synth(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Parquet file to write; it must not exist yet.")],
    n: Annotated[int, typer.Option("--n", help="How many utterances.")] = 400_000,
    seed: Annotated[int, typer.Option(help="Which corpus: the same seed gives the same texts on any machine.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a corpus of synthetic utterances, all distinct, for load and scale tests."""
    _describe(Corpus(str(out), write_corpus(n, seed, out)), as_json)


@corpora.command("show")
def show(
    source: CorpusArgument,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many utterances.")] = 10,
    label: Annotated[str | None, typer.Option(help="Only utterances of this label.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the first utterances of a corpus."""
    table = read_corpus(source).table
    if label is not None:
        if "label" not in table.column_names:
            raise ValueError(f"corpus {source} has no column 'label'")
        known = sorted(name for name in pc.unique(table["label"]).to_pylist() if name is not None)
        if label not in known:
            raise ValueError(f"corpus {source} has no label {label!r}; its labels are {', '.join(known)}")
        table = table.filter(pc.equal(table["label"], label))
    print_rows(
        source, [{key: _plain(value) for key, value in row.items()} for row in table.slice(0, rows).to_pylist()], as_json
    )


def _describe(corpus: Corpus, as_json: bool) -> None:
    repeated = corpus.n_rows - len(pc.unique(corpus.table["text"]))
    synthetic = _count_synthetic(corpus)
    if as_json:
        counts = {"corpus": corpus.name, "utterances": corpus.n_rows, "digest": corpus.digest, "repeated_texts": repeated}
        print_json(counts | {"synthetic_texts": synthetic, "labels": _summary(corpus)})
        return
    print_rows(f"{corpus.name}: {corpus.n_rows:,} utterances, digest {corpus.digest[:16]}", _summary(corpus), as_json=False)
    if repeated:
        note(f"{repeated:,} texts repeat an earlier one; a repeat on both sides of a split flatters a probe")
    if synthetic:
        note(f"{synthetic:,} texts are synthetic, written by a grammar: fit for load tests, and no evidence about emotion")


def _count_synthetic(corpus: Corpus) -> int:
    if "source" not in corpus.table.column_names:
        return 0
    return sum(source == SYNTHETIC for source in corpus.table["source"].to_pylist())


def _summary(corpus: Corpus) -> list[Row]:
    table = corpus.table
    words = np.array([len(text.split()) for text in table["text"].to_pylist()])
    labels = table["label"].to_pylist() if "label" in table.column_names else [None] * corpus.n_rows
    names = sorted({label for label in labels if label is not None})
    groups = [(name, np.array([label == name for label in labels])) for name in names]
    unlabelled = np.array([label is None for label in labels])
    if unlabelled.any():
        groups.append(("(no single label)", unlabelled))
    groups.append(("all", np.ones(corpus.n_rows, np.bool_)))
    return [
        {
            "label": name,
            "utterances": int(chosen.sum()),
            "share": float(chosen.mean()),
            "words_least": int(words[chosen].min()),
            "words_median": float(np.median(words[chosen])),
            "words_most": int(words[chosen].max()),
        }
        for name, chosen in groups
    ]


def _plain(value: object) -> str | int | float | bool | None:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
