"""affectome extract, runs, verify, gc."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import (
    AddressOption,
    CpusOption,
    GpusOption,
    JsonOption,
    LayersOption,
    RunsArgument,
    StoreArgument,
    WorkersOption,
)
from cluster.console import Row, duration, fail_with, note, print_json, print_rows, progress
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.corpus import read_corpus
from extract.decoding import Decoding
from extract.identity import IMPORTED
from extract.packages import BUILTIN
from extract.request import DEFAULT_DATE, DEFAULT_SITES, MOST_ROWS_PER_SHARD, Request
from extract.sites import parse_offsets

if TYPE_CHECKING:  # what computes is imported by the commands that compute: it takes seconds to load
    from extract.store import Store
    from extract.stored_run import StoredRun
    from extract.verify import Verdict


def extract(
    store: Annotated[str, typer.Option(help="The store's directory or URL (s3://...); made where there is nothing yet.")],
    model: Annotated[str, typer.Option(help="Name, directory, or hub id with an optional @revision.")] = BUILTIN,
    corpus: Annotated[str, typer.Option(help="Parquet, JSONL or CSV, or 'builtin'.")] = BUILTIN_CORPUS,
    sites: Annotated[str, typer.Option(help="Comma-separated component.position.")] = DEFAULT_SITES,
    layers: LayersOption = "all",
    template: Annotated[
        str,
        typer.Option(help="raw (the text alone), chat (the model's), few-shot, a Jinja file, or Jinja with {{ text }}."),
    ] = "raw",
    system: Annotated[str, typer.Option(help="System prompt, for templates that have a place for one.")] = "",
    date: Annotated[str, typer.Option(help="The day a chat template is told that writes the date.")] = DEFAULT_DATE,
    reply: Annotated[
        int | None,
        typer.Option(help="Also let the model reply to every prompt, in at most so many tokens.", show_default=False),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of replies; 0 takes the likeliest tokens.")] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Draw replies from the likeliest tokens of this much together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of replies.")] = 0,
    offsets: Annotated[
        str, typer.Option(help="Grid for reply sites, such as 0,1,2,4,8: tokens from the prompt's last into the reply.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="Precision of the model: bfloat16, float32, or 'auto', the faster.")] = "auto",
    stored_dtype: Annotated[str, typer.Option(help="Precision of the store: bfloat16, float16 or float32.")] = "bfloat16",
    attention: Annotated[
        str, typer.Option(help="Attention implementation of transformers; auto is sdpa, or eager where a model has no other.")
    ] = "auto",
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut utterances longer than the model's context.")] = False,
    limit: Annotated[int | None, typer.Option(help="Only the first N utterances.")] = None,
    compression: Annotated[str, typer.Option(help="none or lz4, where the run is new.")] = "none",
    rows_per_shard: Annotated[
        int | None,
        typer.Option(
            help=f"Rows of a shard, where the run is new; without it, a 64th, up to {MOST_ROWS_PER_SHARD:,} or 512 MiB."
        ),
    ] = None,
    token_budget: Annotated[int | None, typer.Option(help="Most tokens of a batch, where the run is new.")] = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    cpus_per_worker: CpusOption = None,
    log: Annotated[Path | None, typer.Option(help="Append what happens to this file, a JSON object a line.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a model over a corpus and keep its hidden states; prints the run's id last."""
    from cluster import logs
    from cluster.execution import Execution
    from cluster.launch import extract as extract_run

    if log is not None:
        logs.to_file(log)
    texts = read_corpus(corpus)
    request = Request(
        model=model,
        corpus=texts if limit is None else texts.head(limit),
        sites=sites,
        layers=layers,
        template=template,
        system=system,
        date=date,
        offsets=parse_offsets(offsets),
        reply=None if reply is None else Decoding(reply, temperature, top_p, seed),
        compute_dtype=dtype,
        stored_dtype=stored_dtype,
        attention=attention,
        truncate=truncate,
        compression=compression,
        rows_per_shard=rows_per_shard,
        token_budget=token_budget,
    )
    run = extract_run(request, store, Execution(workers, address, gpus_per_worker, cpus_per_worker))
    if as_json:
        print_json(run_row(run))
        return
    note(_what_was_done(run))
    typer.echo(run.run_id)


def runs(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List every run of a store."""
    from extract.store import Store

    opened = Store.open(store)
    rows, problems = [], []
    for run_id in opened.run_ids():
        try:
            rows.append(run_row(opened.run(run_id)))
        except ValueError as error:  # one damaged run must not hide the others
            problems.append(f"run {run_id}: {error}")
    print_rows(f"runs in {store}", rows, as_json)
    fail_with(problems, f"in {store}, named above")


def verify_runs(
    store: StoreArgument,
    run: RunsArgument = None,
    fast: Annotated[bool, typer.Option("--fast", help="Read the receipts only.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take damaged shards back, so that they are extracted or imported again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every receipt, digest, checksum, shape and value; exit code 1 when something is wrong."""
    from extract.store import Store
    from extract.verify import requeue, verify

    if repair and Store.restore_marker(store):
        note(f"wrote the lost or damaged affectome.json of {store} again")
    opened = Store.open(store)
    chosen, problems, done = [], [], []
    for run_id in _run_ids(opened, run):
        try:
            chosen.append(opened.run(run_id))
        except ValueError as error:
            problems.append(f"run {run_id}: {error}")
            if repair:
                opened.forget_manifest(run_id)
                done.append(
                    f"run {run_id}: removed its manifest where it was there; "
                    "launching its extraction or import again writes it anew"
                )
    with progress("verifying", sum(stored.n_shards for stored in chosen), "shards") as advance:
        verdicts = [verify(stored, fast, advance) for stored in chosen]
    print_rows(f"verified {store}", [_verdict_row(verdict) for verdict in verdicts], as_json)
    problems += [f"run {verdict.run_id}: {problem}" for verdict in verdicts for problem in verdict.problems]
    for stored, verdict in zip(chosen, verdicts, strict=True):
        if repair and not verdict.whole:
            done.append(_what_was_repaired(stored, verdict, requeue(opened, stored, verdict)))
    for line in done:
        note(line)
    remedy = "" if repair else "; take what is damaged back with --repair and launch the extraction or the import again"
    fail_with(problems, f"in {store}, named above{remedy}")


def gc(
    store: StoreArgument,
    run: RunsArgument = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what is shown, not only show it.")] = False,
    older_than: Annotated[float, typer.Option(help="Minutes without a write after which an attempt counts as dead.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Show what dead attempts left behind in a store, and with --remove remove it."""
    from extract.garbage import find_leftovers, remove_leftovers
    from extract.store import Store

    opened = Store.open(store)
    found, problems = [], []
    for run_id in _run_ids(opened, run):
        try:
            found += find_leftovers(opened, run_id)
        except ValueError as error:  # what a damaged run names is not known, so nothing of it is touched
            problems.append(f"run {run_id}: {error}")
    removed = remove_leftovers(opened, found, older_than) if remove else []
    rows: list[Row] = [
        {
            "run": leftover.run_id,
            "objects_of": leftover.prefix,
            "objects": leftover.n_objects,
            "bytes": leftover.n_bytes,
            "minutes_old": round(leftover.minutes, 1),
            "dead": leftover.minutes >= older_than,
            "removed": leftover in removed,
        }
        for leftover in found
    ]
    print_rows(f"what nobody names in {store}", rows, as_json)
    dead = [leftover for leftover in found if leftover.minutes >= older_than]
    n_bytes = sum(leftover.n_bytes for leftover in (removed if remove else dead))
    if remove:
        note(f"removed {len(removed):,} of {len(found):,} leftovers, {n_bytes:,} bytes")
    else:
        note(f"{len(dead):,} of {len(found):,} leftovers are dead, {n_bytes:,} bytes; --remove removes them")
    fail_with(problems, f"in {store}, named above; nothing of those runs was touched")


def _what_was_repaired(run: "StoredRun", verdict: "Verdict", shards: Sequence[int]) -> str:
    manifest = "; removed its manifest, because the tables it names are damaged" if verdict.damaged_tables else ""
    again = f"will do shards {', '.join(map(str, shards))}" if shards else "will do no shard"
    what = "import" if run.manifest.identity.imported else "extraction"
    return f"run {verdict.run_id}: launching its {what} again {again}{manifest}; after that launch, affectome gc clears up"


def _run_ids(store: "Store", prefix: str | None) -> list[str]:
    return store.run_ids() if prefix is None else [store.run_id(prefix)]


def _what_was_done(run: "StoredRun") -> str:
    from cluster.status import stage_seconds

    receipts = run.receipts()
    tokens = sum(receipt.n_tokens for receipt in receipts)
    truncated = sum(receipt.n_truncated for receipt in receipts)
    cut = f"; {truncated:,} utterances were cut at the model's context" if truncated else ""
    spent = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in stage_seconds(receipts))
    return f"{run.manifest.n_rows:,} rows, {tokens:,} tokens; time of all workers: {spent}{cut}"


def run_row(run: "StoredRun") -> Row:
    """A run as affectome runs lists it."""
    manifest, receipts = run.manifest, run.receipts()
    return {
        "run": run.run_id,
        "model": manifest.model,
        "revision": _revision(manifest.identity.weights),
        "template": manifest.template,
        "corpus": manifest.corpus,
        "sites": manifest.identity.sites,
        "layers": f"{manifest.identity.layers[0]}..{manifest.identity.layers[-1]} ({len(manifest.identity.layers)})",
        "dtype": manifest.identity.compute_dtype,
        "rows_done": sum(receipt.n_rows for receipt in receipts),
        "rows_asked": manifest.n_rows,
        "bytes": sum(receipt.n_bytes for receipt in receipts),
        "created": manifest.created,
        "finished": max((receipt.finished for receipt in receipts), default=None),
    }


def _revision(weights: str) -> str:
    """The commit of a hub model, or the beginning of the digest of its weights or of imported states."""
    if weights.startswith(IMPORTED):
        return f"imported {weights.rpartition('@')[2][: len('sha256:') + 12]}"
    return weights.rpartition("@")[2] if weights.startswith("hub:") else weights[: len("sha256:") + 12]


def _verdict_row(verdict: "Verdict") -> Row:
    return {
        "run": verdict.run_id,
        "whole": verdict.whole,
        "rows_whole": verdict.n_rows_whole,
        "rows_asked": verdict.n_rows,
        "receipts": verdict.n_receipts,
        "objects": verdict.n_objects,
        "bytes": verdict.n_bytes,
        "problems": [str(problem) for problem in verdict.problems],
    }
