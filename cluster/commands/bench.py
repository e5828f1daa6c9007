"""affectome bench."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import JsonOption, LayersOption
from cluster.console import Row, note, print_json, print_rows
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.corpus import read_corpus
from extract.packages import BUILTIN
from extract.request import DEFAULT_SITES, Request

if TYPE_CHECKING:
    from extract.bench import Speed


def bench(
    model: Annotated[str, typer.Option(help="Name, directory, or hub id with an optional @revision.")] = BUILTIN,
    corpus: Annotated[str, typer.Option(help="Parquet, JSONL or CSV, or 'builtin'.")] = BUILTIN_CORPUS,
    limit: Annotated[int, typer.Option(min=1, help="How many utterances to extract.")] = 500,
    sites: Annotated[str, typer.Option(help="Comma-separated component.position.")] = DEFAULT_SITES,
    layers: LayersOption = "all",
    template: Annotated[str, typer.Option(help="As for extract.")] = "raw",
    dtype: Annotated[str, typer.Option(help="Precision of the model: bfloat16, float32, or 'auto', the faster.")] = "auto",
    token_budget: Annotated[int | None, typer.Option(help="Most tokens of a batch.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast this machine extracts, beside what the model's matrix products alone would take."""
    from extract.bench import measure_speed

    note(f"extracting {limit:,} utterances into a temporary store")
    texts = read_corpus(corpus).head(limit)
    speed = measure_speed(
        Request(
            model=model,
            corpus=texts,
            sites=sites,
            layers=layers,
            template=template,
            compute_dtype=dtype,
            token_budget=token_budget,
        )
    )
    if as_json:
        print_json({**asdict(speed), "tokens_per_second": speed.tokens_per_second, "share": speed.share})
    else:
        print_rows(f"{model}, {speed.dtype} on {speed.device}", _rows(speed), as_json=False)


def _rows(speed: "Speed") -> list[Row]:
    split = {
        "tokenize, plan": speed.plan_seconds,
        "compute": speed.compute_seconds,
        "copy": speed.copy_seconds,
        "write": speed.write_seconds,
    }
    return [
        {"what": "utterances/s", "value": f"{speed.n_rows / speed.seconds:,.1f}"},
        {"what": "tokens/s", "value": f"{speed.tokens_per_second:,.0f}"},
        {"what": "limit: matrix products alone, tokens/s", "value": f"{speed.limit:,.0f}"},
        {"what": "share of the limit", "value": f"{speed.share:.0%}"},
        *({"what": f"time: {name}", "value": f"{took:.2f} s, {took / speed.seconds:.0%}"} for name, took in split.items()),
        {"what": "peak memory", "value": f"{speed.peak_bytes / 2**30:.2f} GiB"},
    ]
