"""affectome models list, affectome models import, affectome check-model."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import JsonOption
from cluster.console import Row, note, print_rows, progress
from extract.corpus import BUILTIN as BUILTIN_CORPUS
from extract.corpus import read_corpus
from extract.models import find_model, imported_models
from extract.packages import BUILTIN, PACKAGED, PackagedModel

models = typer.Typer(no_args_is_help=True, help="Built-in and local models.")


@models.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the built-in model, those of other packages, and the imported ones."""
    imported = {model.name: str(model.directory) for model in imported_models()}
    ready = {name: imported.get(name) or _state(packaged) for name, packaged in PACKAGED.items()}
    rows: list[Row] = [
        {"model": name, "built_in": name == BUILTIN, "where": where} for name, where in {**ready, **imported}.items()
    ]
    print_rows("models", rows, as_json)


def _state(packaged: PackagedModel) -> str:
    """What a packaged model that is not imported needs."""
    paths = packaged.paths()
    if paths is None:
        return f"not installed: {packaged.install}"
    return "imported on first use" if packaged.sha256 else str(paths[0])


@models.command("import")
def import_model(
    source: Annotated[str, typer.Argument(help="A GGUF file, or the name of a packaged model.")] = BUILTIN,
    name: Annotated[str | None, typer.Option(help="Its name from now on; the file's name without it.")] = None,
) -> None:
    """Turn a GGUF file once into safetensors in the cache, and print its name."""
    if source in PACKAGED:
        if name is not None:
            raise ValueError(f"--name goes with a file; a packaged model is called by its own, {source}")
        model = find_model(source)
    else:
        from extract.gguf import import_gguf

        model = import_gguf(Path(source), name or Path(source).stem.lower())
    note(f"{model.name} is in {model.directory}")
    typer.echo(model.name)


def check_model(
    model: Annotated[str, typer.Argument(help="Name, directory or hub id.")] = BUILTIN,
    texts: Annotated[int, typer.Option(min=1, help="How many texts of the built-in corpus to compare.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Compare the engine with plain transformers at batch 1 in float32, layer by layer."""
    from extract.engine import default_device
    from extract.parity import TOLERANCES, check_parity

    found = find_model(model)
    chosen = read_corpus(BUILTIN_CORPUS).head(texts).table["text"].to_pylist()
    rows: list[Row] = []
    failed: list[str] = []
    for dtype in TOLERANCES:
        with progress(f"comparing in {dtype}", len(chosen), "texts") as advance:
            entries = check_parity(found, dtype, chosen, default_device(), advance)
        rows += [{"dtype": dtype, **asdict(entry), "passes": entry.passes(dtype)} for entry in entries]
        failed += [f"{dtype} layer {entry.layer}" for entry in entries if not entry.passes(dtype)]
    print_rows(f"{found.name}: relative L2 error against plain transformers over {len(chosen)} texts", rows, as_json)
    if failed:
        raise RuntimeError(f"{found.name} differs from plain transformers at {', '.join(failed)}")
    note(f"{found.name} agrees with plain transformers in {' and '.join(TOLERANCES)}")
