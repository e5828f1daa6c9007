"""affectome import: hidden states that were made elsewhere, as a run of a store."""

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.extraction import run_row
from cluster.commands.options import JsonOption
from cluster.console import note, print_json, progress, stopping_on_sigterm
from extract.corpus import read_corpus

if TYPE_CHECKING:  # they take seconds to load
    from extract.launches import Survey

DEFAULT_TENSOR = "hidden"  # extract.states_file.TENSOR
DEFAULT_TEMPLATE = "unknown"  # extract.importing.UNKNOWN


def import_(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="The store's directory or URL; made where there is nothing yet.")
    ],
    states: Annotated[
        str,
        typer.Option(help="A .npy or .safetensors of (utterances, width), or (layers, utterances, width)."),
    ],
    corpus: Annotated[str, typer.Option(help="Whose they are, row by row: Parquet, JSONL or CSV with a column 'text'.")],
    site: Annotated[str, typer.Option(help="Where they were read, such as resid.last.")],
    model: Annotated[str, typer.Option(help="What made them, such as OWNER/NAME@COMMIT.")],
    layers: Annotated[
        str, typer.Option(help="The file's layers in its order, as in 0,8,16 or 0:13; all: those it names, or 0 and up.")
    ] = "all",
    n_layers: Annotated[
        int | None,
        typer.Option("--n-layers", help="Blocks of the model, where neither the file nor its layers, all from 0 up, tell."),
    ] = None,
    template: Annotated[str, typer.Option(help="How the utterances were put to the model, such as raw.")] = DEFAULT_TEMPLATE,
    tensor: Annotated[str, typer.Option(help="Which tensor of a .safetensors.")] = DEFAULT_TENSOR,
    compression: Annotated[str, typer.Option(help="none or lz4, where the run is new.")] = "none",
    rows_per_shard: Annotated[int | None, typer.Option(help="Rows of a shard, where the run is new.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Put hidden states that were made elsewhere into a store; prints the run's id last."""
    from extract.importing import ImportRequest, import_missing, plan_import
    from extract.states_file import open_states

    file, texts = open_states(states, tensor), read_corpus(corpus)
    request = ImportRequest(file, texts, site, model, layers, n_layers, template, rows_per_shard, compression)
    with stopping_on_sigterm():
        with progress("checking", texts.n_rows, "rows") as meter:
            plan = plan_import(request, store, meter)
        run = plan.run
        missing = sum(map(run.shard_size, run.missing_shards()))
        if missing:
            with progress("importing", missing, "rows") as meter:
                import_missing(plan, meter, _waiting)
    done = "imported" if missing else "imported already:"
    held = f"layers {', '.join(map(str, run.manifest.identity.layers))} of {run.manifest.identity.sites[0]}"
    note(f"{done} {run.manifest.n_rows:,} rows, {held}, {run.manifest.identity.stored_dtype}")
    if as_json:
        print_json(run_row(run))
        return
    typer.echo(run.run_id)


def _waiting(survey: "Survey") -> None:
    note(f"the last shards are being done by {survey.who}; waiting for them")
