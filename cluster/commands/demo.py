"""affectome demo: the whole pipeline on the built-in model and corpus."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.analysis import DEFAULT_PASSAGE, DEFAULT_PER_LABEL, print_persistence, print_probe
from cluster.commands.options import JsonOption
from cluster.console import note, print_json
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.corpus import read_corpus
from extract.packages import BUILTIN
from extract.request import Request


def demo(
    directory: Annotated[Path, typer.Option(help="Where the store and the report go.")] = Path("affectome-demo"),
    as_json: JsonOption = False,
) -> None:
    """From text to a map of emotion by layer: the built-in model on the built-in corpus."""
    from analyze.query import Run
    from analyze.report import findings
    from analyze.transfer import by_values
    from analyze.zeroshot import MAX_TOKENS
    from cluster import pipeline
    from cluster.launch import extract
    from extract.verify import verify

    began = time.monotonic()
    location = str(directory / "store")
    stored = extract(Request(BUILTIN, read_corpus(BUILTIN_CORPUS)), location)
    verdict = verify(stored)
    if not verdict.whole:
        raise RuntimeError(f"run {stored.run_id} is damaged: {verdict.problems[0]}; remove {location} and run the demo again")
    note(f"verified {verdict.n_objects:,} objects, {verdict.n_bytes:,} bytes")
    run = Run(stored)
    probes = {site: pipeline.probe(run, site, run.layers_of(site)) for site in run.sites}
    layer = probes["resid.last"].best_layer
    (persistence,) = pipeline.persistence(run, (layer,), DEFAULT_PASSAGE, DEFAULT_PER_LABEL, "linear", location)
    site = findings.headline_probe(list(probes.values())).site
    pipeline.geometry(run, site, run.layers_of(site))
    pipeline.transfer(by_values(run, "keyword"), site, run.layers_of(site))
    pipeline.zero_shot(run, site, "linear", MAX_TOKENS, location)
    path = pipeline.report(run, directory / "report")
    note(f"done in {time.monotonic() - began:.0f} s")
    if as_json:
        measured = {"probes": [asdict(result) for result in probes.values()], "persistence": asdict(persistence)}
        print_json({"run": run.run_id, "store": location, "report": str(path.resolve())} | measured)
        return
    for result in probes.values():
        print_probe(result)
    print_persistence(persistence)
    typer.echo(f"run {run.run_id} in {location}")
    typer.echo(f"report: {path.resolve()}")
