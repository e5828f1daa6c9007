"""Bring hidden states that were made elsewhere into a store, as a run that is marked as imported.

The file is read twice: once for the digest of every row, which is what identifies the run, and once shard by shard, each row
held against its digest, so that numbers that changed meanwhile are found out. Taking the file itself into the store was
rejected: it has no checksums, and reading one layer, or verifying, would need code of its own.

Everything else is what an extraction does: the same manifest, shards, receipts and launches (docs/store.md).

Shape suffixes: L layers, N rows, D width.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import pyarrow as pa

from extract.corpus import Corpus
from extract.documents import Manifest, Receipt, now
from extract.encoding import COMPRESSIONS, Values, is_finite, to_float32
from extract.identity import IMPORTED, Identity, sha256_hex
from extract.launches import Launch, Survey, shards_to_do
from extract.request import rows_per_shard
from extract.row_digests import digests_of, digests_table, row_digests
from extract.sites import Site, parse_layers
from extract.states_file import StatesFile
from extract.store import Store, check_same_columns
from extract.stored_run import StoredRun

UNKNOWN = "unknown"
"""What the identity of an imported run says where an extraction's says what computed the states."""

_BLOCK_BYTES = 64 << 20
_MOST_LAYERS = 9_999
_MOST_ROWS_PER_SHARD = (1 << 31) - 1  # what a 32-bit number of a table holds
_RECORDED_LIBRARIES = ("affectome", "numpy", "safetensors", "zarr")


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What a user asks to have imported, and what the user says of it."""

    states: StatesFile
    """The states."""
    corpus: Corpus
    """Whose they are: as many utterances as the states have rows, in their order."""
    site: str
    """Where they were read: a site with one vector for each utterance, such as `resid.last`."""
    model: str
    """What made them, such as `OWNER/NAME@COMMIT`."""
    layers: str = "all"
    """Layers in the order of the file, ascending, such as `0,8,16` or `0:13`; `all` for those the file names, or 0 and up."""
    n_layers: int | None = None
    """Blocks of the model; without it, as the file says, or the last of the layers where they are all there are."""
    template: str = UNKNOWN
    """How the utterances were put to the model."""
    rows_per_shard: int | None = None
    """Rows of a shard, where the run is new; without it, as extract.request.rows_per_shard says."""
    compression: str = "none"
    """One of COMPRESSIONS, where the run is new."""


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """A run in the store, with the states that are to be in it."""

    run: StoredRun
    """The run, created or found."""
    states: StatesFile
    """The states."""
    digests: bytes
    """Of every row (extract.row_digests)."""


def plan_import(request: ImportRequest, location: str, on_rows: Callable[[int], None] = lambda _: None) -> ImportPlan:
    """Check every number of a file, and find or create the run.

    Args:
        location: the store's directory or URL; it is made where there is nothing yet.
        on_rows: called with the number of rows checked.

    Raises:
        ValueError: the states, or what is said of them, cannot be; nothing was written.
    """
    Store.check(location)
    request = replace(request, model=request.model.strip(), template=request.template.strip())
    layers, n_layers = _checked(request)
    digests = _digests(request, layers, on_rows)
    identity = Identity(
        weights=f"{IMPORTED}{request.model}@sha256:{sha256_hex(digests)}",
        tokenizer=UNKNOWN,
        template=request.template,
        continuation="",
        corpus=request.corpus.digest,
        sites=(str(Site.parse(request.site)),),
        offsets=(),
        layers=layers,
        compute_dtype=UNKNOWN,
        stored_dtype=request.states.stored_dtype,
        attention=UNKNOWN,
        truncate=False,
    )
    utterances = _utterances(request.corpus)
    store = Store.open(location, create=True)
    run = store.find(identity)
    if run is None:
        manifest = _manifest(request, identity, n_layers, store.surviving_receipt(identity.run_id))
        run = store.create_run(manifest, {"utterances": utterances, "states": digests_table(digests)})
    check_same_columns(run, utterances)
    if _told_depth(request) not in (None, run.manifest.n_layers):
        raise ValueError(
            f"run {run.run_id} holds these states already, as those of a model of {run.manifest.n_layers} blocks; stored runs "
            "never change, so import them into another store"
        )
    return ImportPlan(run, request.states, digests)


def import_missing(
    plan: ImportPlan, on_rows: Callable[[int], None] = lambda _: None, on_waiting: Callable[[Survey], None] = lambda _: None
) -> list[Receipt]:
    """Write the run's missing shards, sharing them with other launches of the same import where there are some.

    Args:
        on_rows: called with the number of rows written, here or by other launches.
        on_waiting: called once when only shards are left that other launches are writing.

    Returns:
        The receipts of the shards that were done here.

    Raises:
        ValueError: the file changed since it was checked.
    """
    receipts = []
    with Launch(plan.run) as launch:
        for shard in shards_to_do(launch, on_rows, on_waiting):
            receipts.append(_import_shard(plan, shard))
            on_rows(receipts[-1].n_rows)
    return receipts


def import_states(request: ImportRequest, location: str) -> StoredRun:
    """Import states, and give the finished run: `plan_import` and `import_missing`.

    Raises:
        ValueError: as from these.
    """
    plan = plan_import(request, location)
    import_missing(plan)
    return plan.run


def _checked(request: ImportRequest) -> tuple[tuple[int, ...], int]:
    """The layers, and how many blocks the model has."""
    site, path, n_rows = Site.parse(request.site), request.states.path, request.states.shape[1]
    if request.states.said.site not in (None, str(site)):
        said = f"{request.states.said.site!r:.80}"
        raise ValueError(f"{path} says that its states are of {said}, so they cannot be imported as {site}")
    if not site.pooled:
        raise ValueError(f"{site} keeps several vectors for each utterance; an import takes one, as at resid.last")
    if n_rows != request.corpus.n_rows:
        raise ValueError(
            f"{path} holds states of {n_rows:,} utterances (shape {request.states.shape}, layers first), and corpus "
            f"{request.corpus.name} has {request.corpus.n_rows:,}; row i of one must be row i of the other"
        )
    if not request.model or not request.template:
        raise ValueError("say which model made the states and how the utterances were put to it; neither may be blank")
    if not request.model.isprintable():  # and so it is text, too
        raise ValueError(f"say which model made the states, in letters that print, not {request.model!a}")
    if not _is_text(request.template):
        raise ValueError("the template is not text in UTF-8; say in words how the utterances were put to the model")
    if request.compression not in COMPRESSIONS:
        raise ValueError(f"{request.compression!r} is no compression; choose from {', '.join(COMPRESSIONS)}")
    for what, count, most in (
        ("rows per shard", request.rows_per_shard, _MOST_ROWS_PER_SHARD),
        ("blocks of a model", _told_depth(request), _MOST_LAYERS),
    ):
        if count is not None and not 1 <= count <= most:
            raise ValueError(f"there must be 1 to {most:,} {what}, not {count:,}")
    if request.n_layers is not None and request.states.said.n_layers not in (None, request.n_layers):
        raise ValueError(f"{path} says that its model has {request.states.said.n_layers:,} blocks, not {request.n_layers:,}")
    layers = _layers(request)
    n_layers = _told_depth(request) or _depth_of(request, site, layers)
    if site.layers(layers, n_layers) != layers:
        there, named = f"layer {n_layers}" if site.component == "final_norm" else "layers from 1", _listed(layers)
        raise ValueError(f"{site} of a model of {n_layers} blocks has {there}, not {named}; --n-layers says how many blocks")
    return layers, n_layers


def _is_text(said: str) -> bool:
    """Whether it is text, and no bytes that a command line could not read as such."""
    try:
        said.encode()
    except UnicodeEncodeError:
        return False
    return True


def _told_depth(request: ImportRequest) -> int | None:
    """Blocks of the model, where the user or the file says how many."""
    return request.states.said.n_layers if request.n_layers is None else request.n_layers


def _depth_of(request: ImportRequest, site: Site, layers: tuple[int, ...]) -> int:
    """Blocks of a model with no other layers at the site; a guess would stay, and depth is told relative to it."""
    last = layers[-1]
    alone = len(layers) == 1 and site.component != "final_norm"
    if last < 1 or alone or site.layers(range(last + 1), last) != layers:
        raise ValueError(
            f"{request.states.path} holds some of the layers of a model ({_listed(layers)}), and their depth is told relative "
            "to all; say with --n-layers how many blocks it has"
        )
    return last


def _layers(request: ImportRequest) -> tuple[int, ...]:
    n_held, most, said = request.states.shape[0], _told_depth(request) or _MOST_LAYERS, request.states.said.layers
    if said is not None and len(said) != n_held:
        raise ValueError(f"{request.states.path} says that it holds {len(said)} layers, and it holds {n_held}")
    if request.layers.strip() != "all":
        layers = [layer for part in request.layers.split(",") for layer in parse_layers(part, most)]
    elif said is not None:
        layers = list(said)
    elif n_held == 1:
        raise ValueError(f"{request.states.path} holds one layer and does not say which; give --layers, such as 12")
    else:
        layers = list(range(n_held))
    if len(layers) != n_held:
        raise ValueError(f"{request.states.path} holds {n_held} layers, and {len(layers)} are named ({request.layers})")
    if said not in (None, tuple(layers)):
        raise ValueError(f"{request.states.path} says that it holds layers {_listed(said)}, not {_listed(layers)}")
    if layers != sorted(set(layers)):
        raise ValueError(f"layers go up as the file's first axis does, each once: {_listed(layers)} do not")
    if layers[0] < 0 or layers[-1] > most:
        raise ValueError(f"a model of {most:,} blocks has layers 0 (embedding) to {most:,}, not {layers[0]} to {layers[-1]}")
    return tuple(layers)


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _digests(request: ImportRequest, layers: tuple[int, ...], on_rows: Callable[[int], None]) -> bytes:
    """Of every row, once each of its values is seen to be a number."""
    states, found = request.states, []
    n_layers, n_rows, width = states.shape
    step = max(1, _BLOCK_BYTES // (n_layers * width * 4))
    for start in range(0, n_rows, step):
        block_LND = states.read(start, min(start + step, n_rows))
        if not is_finite(block_LND, states.stored_dtype):
            _refuse(request, block_LND, start, layers)
        found.append(row_digests(block_LND))
        on_rows(block_LND.shape[1])
    return b"".join(found)


def _refuse(request: ImportRequest, block_LND: Values, start: int, layers: tuple[int, ...]) -> NoReturn:
    decoded = to_float32(block_LND, request.states.stored_dtype)
    layer, row, place = map(int, np.argwhere(~np.isfinite(decoded))[0])
    name = request.corpus.table["utterance_id"][start + row].as_py()
    raise ValueError(
        f"{request.states.path} holds {decoded[layer, row, place]} at row {start + row:,}, id {name!r}, layer {layers[layer]}; "
        "a store holds finite numbers only, so leave the row out of states and corpus, or make its states anew"
    )


def _utterances(corpus: Corpus) -> pa.Table:
    """The corpus with `row` in front and `n_tokens` at the end, which are not known."""
    table = corpus.table.add_column(0, "row", pa.array(range(corpus.n_rows), pa.int64()))
    return table.append_column("n_tokens", pa.nulls(corpus.n_rows, pa.int64()))


def _manifest(request: ImportRequest, identity: Identity, n_layers: int, pinned: Receipt | None) -> Manifest:
    """The manifest of a new run, cut as the shards that it may still have; without its tables."""
    _, n_rows, width = request.states.shape
    row_bytes = len(identity.layers) * width * (4 if identity.stored_dtype == "float32" else 2)
    asked = request.rows_per_shard or rows_per_shard(n_rows, row_bytes)
    return Manifest(
        run_id=identity.run_id,
        identity=identity,
        n_rows=n_rows,
        n_layers=n_layers,
        width=width,
        rows_per_shard=pinned.rows_per_shard if pinned else asked,
        token_budget=0,
        compression=pinned.compression if pinned else request.compression,
        tables=(),
        model=request.model,
        template=request.template,
        system="",
        date="",
        corpus=request.corpus.name,
        created=now("milliseconds"),
    )


def _import_shard(plan: ImportPlan, shard: int) -> Receipt:
    """Write a shard and commit it, as often as it is taken back meanwhile."""
    run, (start, stop) = plan.run, plan.run.shard_rows(shard)
    digests, (site,) = digests_of(plan.digests, start, stop), run.manifest.identity.sites
    while True:
        entry, receipt = run.end_of_log(shard)
        if receipt is not None:
            return receipt
        began = time.perf_counter()
        states_LND = plan.states.read(start, stop)
        if row_digests(states_LND) != digests:
            raise ValueError(
                f"{plan.states.path} changed while it was imported: rows {start:,} to {stop - 1:,} are not what they were; "
                "import it again once nobody writes to it"
            )
        ready = time.perf_counter()
        attempt, objects = run.write_attempt(shard, {site: states_LND})
        receipt = Receipt(
            run_id=run.run_id,
            shard=shard,
            entry=entry,
            start=start,
            stop=stop,
            attempt=attempt,
            objects=objects,
            token_budget=run.manifest.token_budget,
            compression=run.manifest.compression,
            tokens=sha256_hex(digests),
            n_tokens=0,
            n_computed=0,
            n_shared=0,
            forward="imported",
            n_halved=0,
            n_truncated=0,
            device=UNKNOWN,
            host=platform.node(),
            seconds={"load": ready - began, "write": time.perf_counter() - ready},
            versions={name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES},
            finished=now(),
        )
        if run.commit(receipt):
            return receipt
