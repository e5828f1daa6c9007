"""Arguments and options that several commands share."""

from typing import Annotated

import typer

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="The store's directory or URL.", show_default=False)]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or how it begins.", show_default=False)]
RunsArgument = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id, or how it begins; all runs without it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")]
KindOption = Annotated[str, typer.Option("--kind", help="linear or logistic.")]
LayersOption = Annotated[str, typer.Option("--layers", help="all, a list such as 8,16, or a range such as 0:12.")]
