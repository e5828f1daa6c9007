"""affectome extract, affectome runs, affectome verify."""

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import JsonOption, LayersOption, StoreArgument
from cluster.console import Row, note, print_json, print_rows, progress
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.corpus import read_corpus
from extract.models import BUILTIN
from extract.request import DEFAULT_ROWS_PER_SHARD, DEFAULT_SITES, DEFAULT_TOKEN_BUDGET, Request

if TYPE_CHECKING:  # what computes is imported by the commands that compute: it takes seconds to load
    from extract.run import Plan
    from extract.store import StoredRun
    from extract.verify import Verdict


def extract(
    store: Annotated[str, typer.Option(help="The store's directory; made where there is nothing yet.")],
    model: Annotated[str, typer.Option(help="Name, directory, or hub id with an optional @revision.")] = BUILTIN,
    corpus: Annotated[str, typer.Option(help="Parquet, JSONL or CSV, or 'builtin'.")] = BUILTIN_CORPUS,
    sites: Annotated[str, typer.Option(help="Comma-separated component.position.")] = DEFAULT_SITES,
    layers: LayersOption = "all",
    template: Annotated[str, typer.Option(help="raw (the text alone) or chat (the model's chat template).")] = "raw",
    dtype: Annotated[str, typer.Option(help="Precision of the model: bfloat16 or float32.")] = "bfloat16",
    stored_dtype: Annotated[str, typer.Option(help="Precision of the store: bfloat16, float16 or float32.")] = "bfloat16",
    attention: Annotated[str, typer.Option(help="Attention implementation of transformers.")] = "sdpa",
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut utterances longer than the model's context.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first N utterances.")] = None,
    rows_per_shard: Annotated[int, typer.Option(help="Rows of a shard, where the run is new.")] = DEFAULT_ROWS_PER_SHARD,
    token_budget: Annotated[int, typer.Option(help="Most tokens of a batch, where the run is new.")] = DEFAULT_TOKEN_BUDGET,
    as_json: JsonOption = False,
) -> None:
    """Run a model over a corpus and keep its hidden states; prints the run's id last."""
    from cluster import pipeline

    texts = read_corpus(corpus)
    request = Request(
        model=model,
        corpus=texts if limit is None else texts.head(limit),
        sites=sites,
        layers=layers,
        template=template,
        compute_dtype=dtype,
        stored_dtype=stored_dtype,
        attention=attention,
        truncate=truncate,
        rows_per_shard=rows_per_shard,
        token_budget=token_budget,
    )
    plan = pipeline.extract(request, store)
    if as_json:
        print_json(_run_row(plan.run))
        return
    note(_what_was_done(plan))
    typer.echo(plan.run.run_id)


def runs(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List every run of a store."""
    from extract.store import Store

    print_rows(f"runs in {store}", [_run_row(run) for run in Store.open(store).runs()], as_json)


def verify_runs(
    store: StoreArgument,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id, or how it begins; all runs without it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every receipt, digest, checksum, shape and value; exit code 1 when something is wrong."""
    from extract.store import Store
    from extract.verify import verify

    opened = Store.open(store)
    chosen = [opened.run(run)] if run is not None else []
    problems = []
    for run_id in opened.directories() if run is None else []:
        try:
            chosen.append(opened.run(run_id))
        except ValueError as error:
            problems.append(f"run {run_id}: {error}")
    with progress("verifying", sum(stored.n_shards for stored in chosen), "shards") as advance:
        verdicts = [verify(stored, advance) for stored in chosen]
    print_rows(f"verified {store}", [_verdict_row(verdict) for verdict in verdicts], as_json)
    problems += [f"run {verdict.run_id}: {problem}" for verdict in verdicts for problem in verdict.problems]
    for problem in problems:
        note(problem)
    if problems:
        raise RuntimeError(
            f"{len(problems):,} problems in {store}, named above; to do a damaged shard again, remove its receipt "
            "(runs/RUN/receipts/SHARD.json) and launch the same extraction"
        )


def _what_was_done(plan: "Plan") -> str:
    receipts = list(plan.run.receipts())
    seconds = sum(receipt.seconds["compute"] for receipt in receipts)
    tokens = sum(receipt.n_tokens for receipt in receipts)
    truncated = sum(receipt.n_truncated for receipt in receipts)
    cut = f"; {truncated:,} utterances were cut at the model's context" if truncated else ""
    return f"{plan.run.manifest.n_rows:,} rows, {tokens:,} tokens, {seconds:.1f} s of computing{cut}"


def _run_row(run: "StoredRun") -> Row:
    manifest, receipts = run.manifest, list(run.receipts())
    return {
        "run": run.run_id,
        "model": manifest.model,
        "template": manifest.template,
        "corpus": manifest.corpus,
        "sites": manifest.identity.sites,
        "layers": f"{manifest.identity.layers[0]}..{manifest.identity.layers[-1]} ({len(manifest.identity.layers)})",
        "dtype": manifest.identity.compute_dtype,
        "rows_done": sum(receipt.stop - receipt.start for receipt in receipts),
        "rows_asked": manifest.n_rows,
        "bytes": sum(entry.size for receipt in receipts for entry in receipt.objects),
        "created": manifest.created,
    }


def _verdict_row(verdict: "Verdict") -> Row:
    return {
        "run": verdict.run_id,
        "whole": verdict.whole,
        "rows_whole": verdict.n_rows_whole,
        "rows_asked": verdict.n_rows,
        "receipts": verdict.n_receipts,
        "objects": verdict.n_objects,
        "bytes": verdict.n_bytes,
        "problems": list(verdict.problems),
    }
