"""Arguments and options that several commands share."""

from typing import TYPE_CHECKING, Annotated

import typer

from extract.sites import parse_layers

if TYPE_CHECKING:
    from analyze.query import Run

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="The store's directory or URL.", show_default=False)]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or how it begins.", show_default=False)]
RunsArgument = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id, or how it begins; all runs without it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")]
KindOption = Annotated[
    str,
    typer.Option(
        "--kind",
        help="linear (discriminant analysis), ridge, difference (of means), logistic, or mlp (the paper's).",
    ),
]
MaybeKindOption = Annotated[
    str | None,
    typer.Option(
        "--kind",
        help="linear (discriminant analysis), ridge, difference (of means), logistic, or mlp (the paper's); without it linear, "
        "and ridge for numbers.",
        show_default=False,
    ),
]
LabelOption = Annotated[
    str,
    typer.Option(
        "--label", metavar="COLUMN", help="What to read: a column of text, lists of text, or numbers such as valence."
    ),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--regularisation",
        help="Shrinkage of linear, alpha of ridge, C of logistic, epochs of mlp; without it, cross-validation chooses.",
        show_default=False,
    ),
]
BalanceOption = Annotated[
    str,
    typer.Option("--balance", help="none; weights (each label weighs the same in the fit); paper (as arXiv 2510.04064)."),
]
SolverOption = Annotated[str, typer.Option("--solver", help="affectome or scikit-learn.")]
SiteOption = Annotated[str, typer.Option("--site", help="Where to read, such as resid.last.")]
LayersOption = Annotated[str, typer.Option("--layers", help="all, a list such as 8,16, or a range such as 0:12.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", help="Most workers; with no --address, on a Ray that is started here.", show_default=False),
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="A running Ray to compute on: auto, HOST:PORT or ray://HOST:PORT.", show_default=False),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker", help="1 where there are GPUs; a fraction for several workers on one.", show_default=False
    ),
]
CpusOption = Annotated[
    int | None, typer.Option("--cpus-per-worker", help="CPUs and threads of a worker; else an even share.", show_default=False)
]


def chosen_layers(run: "Run", site: str, layers: str) -> tuple[int, ...]:
    """The layers that a command's --layers asks for, of those the run holds at the site when it says all."""
    return run.layers_of(site) if layers == "all" else parse_layers(layers, run.manifest.n_layers)
