"""affectome corpus check, affectome corpus show."""

from typing import Annotated

import numpy as np
import pyarrow.compute as pc
import typer

from cluster.commands.options import JsonOption
from cluster.console import Row, note, print_json, print_rows
from extract.corpus import Corpus, read_corpus

corpora = typer.Typer(no_args_is_help=True, help="Validate and look at corpora.")

CorpusArgument = Annotated[str, typer.Argument(metavar="FILE", help="Parquet, JSONL or CSV, or 'builtin'.")]


@corpora.command("check")
def check(source: CorpusArgument, as_json: JsonOption = False) -> None:
    """Validate a corpus and count what it holds, label by label."""
    corpus = read_corpus(source)
    repeated = corpus.n_rows - len(pc.unique(corpus.table["text"]))
    if as_json:
        counts = {"corpus": source, "utterances": corpus.n_rows, "digest": corpus.digest, "repeated_texts": repeated}
        print_json(counts | {"labels": _summary(corpus)})
        return
    print_rows(f"{source}: {corpus.n_rows:,} utterances, digest {corpus.digest[:16]}", _summary(corpus), as_json=False)
    if repeated:
        note(f"{repeated:,} texts repeat an earlier one; a repeat on both sides of a split flatters a probe")


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
