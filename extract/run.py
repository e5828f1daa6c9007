"""Plan a run, find or create it in the store, and do its missing shards one after another in this process.

Everything a user can get wrong is found before the first byte is written: the model, its layers and sites, the
template, and texts that are too long or have no tokens. Tokenizing happens here, once; shards read token ids and
never see the tokenizer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from extract.budget import fastest_dtype, fit_token_budget
from extract.corpus import Corpus
from extract.documents import Manifest, Receipt, now
from extract.encoding import COMPRESSIONS, STORED_DTYPES
from extract.engine import default_device, engine
from extract.identity import Identity
from extract.launches import Launch, Survey, shards_to_do
from extract.loading import COMPUTE_DTYPES, Shape, default_attention, load_tokenizer, read_shape, reply_ends
from extract.models import Model, find_model
from extract.objects import Objects
from extract.request import SHARD_REPLY_TOKENS, Request, rows_per_shard
from extract.shard import ShardTask, extract_shards
from extract.sites import Site, parse_layers, parse_sites
from extract.store import RUN_FILE, Store, check_same_columns
from extract.stored_run import StoredRun
from extract.templates import Template
from extract.tokens import Prompt, continued, offsets_of
from extract.writing import ROWS_AT_ONCE


class UnreadableTextError(ValueError):
    """A text has no tokens of its own, or too many for the model."""

    def __init__(self, sentence: str, row: int, n_tokens: int, most: int) -> None:
        super().__init__(sentence, row, n_tokens, most)  # with all of it, another process can raise it again
        self.row = row
        """Which text, or the first of several."""
        self.n_tokens = n_tokens
        """Its tokens with its template; 0 where none is its own."""
        self.most = most
        """How many the model reads."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Plan:
    """A run in the store, with the model that makes it."""

    store: Store
    """Where it is kept."""
    run: StoredRun
    """The run, created or found."""
    model: Model
    """Its model on this machine."""
    device: str
    """Device of torch that this process computes on (extract.engine.Engine)."""

    @property
    def n_rows_done(self) -> int:
        """Rows of shards that have a receipt."""
        return sum(receipt.n_rows for receipt in self.run.receipts())

    def task(self, shard: int) -> ShardTask:
        """One shard, to be computed by this process."""
        return ShardTask(self.store.location, self.run.run_id, shard, self.model.directory, self.device)

    def tasks(self) -> list[ShardTask]:
        """The shards without a receipt."""
        return [self.task(shard) for shard in self.run.missing_shards()]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was checked, and its texts as its model reads them; nothing is loaded or written for it."""

    request: Request
    """The request, with what has no part in it left out."""
    model: Model
    """Its model on this machine."""
    shape: Shape
    """The model's."""
    template: Template
    """How a text becomes a prompt."""
    prompts: list[Prompt]
    """Of each row."""
    identity: Identity
    """What a run of it would be, with the compute dtype that the request says, `auto` too."""


def read_request(request: Request) -> Asked:
    """Check a request and tokenize its corpus.

    Raises:
        ValueError: something in the request cannot be.
    """
    request = _checked(request)
    model = find_model(request.model)
    shape = read_shape(model)
    tokenizer = load_tokenizer(model)
    template = Template(request.template, tokenizer, request.system, request.date)
    layers = parse_layers(request.layers, shape.n_layers)
    sites = _checked_sites(request, layers, shape)
    prompts = _prompts(request, template, tokenizer, shape)
    identity = Identity(
        weights=model.weights_identity,
        tokenizer=model.tokenizer_digest,
        template=template.text,
        continuation=request.continuation,
        corpus=request.corpus.digest,
        sites=sites,
        offsets=_checked_offsets(request, sites, prompts),
        layers=layers,
        compute_dtype=request.compute_dtype,
        stored_dtype=request.stored_dtype,
        attention=default_attention(model) if request.attention == "auto" else request.attention,
        truncate=request.truncate,
        reply=request.reply,
        reply_ends=reply_ends(model.directory) if request.reply else (),
    )
    return Asked(request, model, shape, template, prompts, identity)


def plan_run(request: Request, location: str, device: str | None = None) -> Plan:
    """Check a request, tokenize its corpus and find or create its run.

    Args:
        location: the store's directory or URL; it is made where there is nothing yet.
        device: where to load the model (extract.engine.Engine); without it, the default device.

    Raises:
        ValueError: something in the request cannot be; nothing was written.
    """
    device = device or default_device()
    place = Store.check(location)
    asked = read_request(request)
    request, model, prompts, identity = asked.request, asked.model, asked.prompts, asked.identity
    if request.compute_dtype == "auto":
        identity = replace(identity, compute_dtype=_chosen_dtype(place, identity, device))
    loaded = engine(model.directory, identity, device)
    sites = [Site.parse(site) for site in identity.sites]
    loaded.check_components({site.component for site in sites})
    if (request.continuation or request.reply) and not loaded.causal:
        raise ValueError(f"{model.name} reads in both directions: an utterance's state would contain what follows it")
    utterances = _utterances(request.corpus, prompts)
    store = Store.open(location, create=True)
    run = store.find(identity)
    if run is None:
        pinned = store.surviving_receipt(identity.run_id)
        request = _as_pinned(request, pinned)
        budget = request.token_budget or fit_token_budget(loaded, prompts, identity.layers, sites, identity.offsets)
        manifest = _manifest(replace(asked, request=request, identity=identity), budget)
        run = store.create_run(manifest, {"utterances": utterances, "tokens": _tokens(prompts)})
    check_same_columns(run, utterances)
    return Plan(store, run, model, device)


def _chosen_dtype(place: Objects, identity: Identity, device: str) -> str:
    """The precision of the run that is there already; without one, the faster. A stopwatch must not make a second run."""
    for dtype in COMPUTE_DTYPES:
        if place.exists(f"runs/{replace(identity, compute_dtype=dtype).run_id}/{RUN_FILE}"):
            return dtype
    return fastest_dtype(device.partition(",")[0])


def extract_missing(
    plan: Plan, on_rows: Callable[[int], None] = lambda _: None, on_waiting: Callable[[Survey], None] = lambda _: None
) -> list[Receipt]:
    """Do the run's missing shards in this process, sharing them with other launches of the same run where there are some.

    Args:
        on_rows: called with the number of rows computed, batch by batch, and of those that other launches have done.
        on_waiting: called once when only shards are left that other launches are computing.

    Returns:
        The receipts of the shards that were done here.
    """
    with Launch(plan.run) as launch:
        tasks = (plan.task(shard) for shard in shards_to_do(launch, on_rows, on_waiting))
        return extract_shards(tasks, on_rows)


def _manifest(asked: Asked, token_budget: int) -> Manifest:
    """The manifest of a new run, still without its tables."""
    request, identity = asked.request, asked.identity
    return Manifest(
        run_id=identity.run_id,
        identity=identity,
        n_rows=request.corpus.n_rows,
        n_layers=asked.shape.n_layers,
        width=asked.shape.width,
        rows_per_shard=request.rows_per_shard or _rows_per_shard(identity, asked.shape, asked.prompts),
        token_budget=token_budget,
        compression=request.compression,
        tables=(),
        model=asked.model.name,
        template=asked.template.source,
        system=request.system,
        date=request.date,
        corpus=request.corpus.name,
        created=now("milliseconds"),  # of two runs of one second one came first
    )


def _as_pinned(request: Request, receipt: Receipt | None) -> Request:
    """The request, cut and batched as the shards that a run without a manifest still has."""
    if receipt is None:
        return request
    return replace(
        request,
        rows_per_shard=receipt.rows_per_shard,
        token_budget=receipt.token_budget,
        compression=receipt.compression,
    )


def _rows_per_shard(identity: Identity, shape: Shape, prompts: Sequence[Prompt]) -> int:
    rows = rows_per_shard(len(prompts), _row_bytes(identity, shape, prompts))
    return rows if identity.reply is None else min(rows, max(ROWS_AT_ONCE, SHARD_REPLY_TOKENS // identity.reply.max_tokens))


def _row_bytes(identity: Identity, shape: Shape, prompts: Sequence[Prompt]) -> float:
    """Mean bytes that the store keeps of a row."""
    tokens = offsets_of(prompts)[-1] / len(prompts)
    kept = {"all": tokens, "offset": float(len(identity.offsets)), "reply": float(len(identity.offsets))}
    sites = [Site.parse(site) for site in identity.sites]
    vectors = sum(kept.get(site.position, 1.0) * len(site.layers(identity.layers, shape.n_layers)) for site in sites)
    itemsize = 4 if identity.stored_dtype == "float32" else 2
    return vectors * shape.width * itemsize


def _checked(request: Request) -> Request:
    """The request, with what has no part in it left out."""
    for name, value, choices in (
        ("compute dtype", request.compute_dtype, ("auto", *COMPUTE_DTYPES)),
        ("stored dtype", request.stored_dtype, STORED_DTYPES),
        ("compression", request.compression, COMPRESSIONS),
    ):
        if value not in choices:
            raise ValueError(f"{value!r} is no {name}; choose from {', '.join(choices)}")
    if any(count is not None and count < 1 for count in (request.rows_per_shard, request.token_budget)):
        raise ValueError("rows per shard and the token budget must be 1 or more")
    if request.reply is None:
        return request
    if request.continuation:
        raise ValueError("a continuation is forced after every prompt and a reply is the model's own: ask for one of them")
    return replace(request, reply=request.reply.checked())


def _prompts(request: Request, template: Template, tokenizer: PreTrainedTokenizerBase, shape: Shape) -> list[Prompt]:
    texts = request.corpus.table["text"].to_pylist()
    ids = request.corpus.table["utterance_id"].to_pylist()
    continuation = _continuation(request, tokenizer)
    prompts: list[Prompt] = []
    too_long: list[tuple[int, int]] = []
    kept_free = request.reply.max_tokens if request.reply else 0
    made = continued(template.prompts(texts), continuation, shape.context - kept_free, request.truncate)
    for row, prompt in enumerate(made):
        if isinstance(prompt, int):
            too_long.append((row, prompt))
        elif prompt.start == prompt.stop:
            sentence = f"row {row:,}, id {ids[row]!r}, has no tokens of its own (text {texts[row]!r}); remove it"
            raise UnreadableTextError(sentence, row, 0, shape.context)
        else:
            prompts.append(prompt)
    if too_long:
        row, n_tokens = too_long[0]
        with_it = " with their continuation" if continuation else f" with {kept_free:,} for their reply" if kept_free else ""
        sentence = (
            f"{len(too_long):,} of {len(texts):,} texts are{with_it} longer than the model's {shape.context:,} tokens "
            f"(first: row {row:,}, id {ids[row]!r}, {n_tokens:,} tokens); "
            "shorten them, drop them, or cut them with --truncate (the run records it)"
        )
        raise UnreadableTextError(sentence, row, n_tokens, shape.context)
    return prompts


def _continuation(request: Request, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The continuation's token ids, as far as the largest offset reaches: nothing is read behind it."""
    if not request.continuation:
        return ()
    ids = tuple(tokenizer(request.continuation, add_special_tokens=False)["input_ids"])
    return ids[: max(request.offsets)] if request.offsets else ids


def _checked_sites(request: Request, layers: Sequence[int], shape: Shape) -> tuple[str, ...]:
    sites = parse_sites(request.sites)
    for site in sites:
        if not site.layers(layers, shape.n_layers):
            needed = f"layer {shape.n_layers}" if site.component == "final_norm" else "a layer above 0"
            raise ValueError(f"{site} needs {needed}, which is not among the layers asked for ({request.layers})")
    return tuple(map(str, sites))


def _checked_offsets(request: Request, sites: Sequence[str], prompts: Sequence[Prompt]) -> tuple[int, ...]:
    positions = {Site.parse(site).position for site in sites if Site.parse(site).on_grid}
    if bool(positions) != bool(request.offsets):
        which = " or ".join(sorted(positions) or ("offset", "reply"))
        raise ValueError(f"{which} sites and a grid of offsets go together: give both or neither")
    offsets = tuple(sorted(set(request.offsets)))
    if "reply" in positions:
        if request.reply is None:
            raise ValueError("reply sites are read in the model's own replies; ask for some with --reply TOKENS")
        if offsets[0] < 0 or offsets[-1] > request.reply.max_tokens:
            problem = offsets[0] if offsets[0] < 0 else offsets[-1]
            raise ValueError(f"replies of at most {request.reply.max_tokens:,} tokens have no token at offset {problem}")
    for row, prompt in enumerate(prompts) if "offset" in positions else ():
        first, last = prompt.stop - 1 + offsets[0], prompt.stop - 1 + offsets[-1]
        if first < 0 or last >= len(prompt.ids):
            problem = offsets[0] if first < 0 else offsets[-1]
            raise ValueError(f"row {row:,} has no token at offset {problem}; take a longer continuation or a smaller grid")
    return offsets


def _utterances(corpus: Corpus, prompts: Sequence[Prompt]) -> pa.Table:
    """The corpus with `row` in front and `n_tokens`, the utterance's own, at the end."""
    table = corpus.table.add_column(0, "row", pa.array(range(len(prompts)), pa.int64()))
    return table.append_column("n_tokens", pa.array([prompt.stop - prompt.start for prompt in prompts], pa.int64()))


def _tokens(prompts: Sequence[Prompt]) -> pa.Table:
    return pa.table(
        {
            "row": pa.array(range(len(prompts)), pa.int64()),
            "ids": pa.array([prompt.ids for prompt in prompts], pa.list_(pa.int32())),
            "start": pa.array([prompt.start for prompt in prompts], pa.int32()),
            "stop": pa.array([prompt.stop for prompt in prompts], pa.int32()),
            "prompt_stop": pa.array([prompt.prompt_stop for prompt in prompts], pa.int32()),
            "truncated": pa.array([prompt.truncated for prompt in prompts], pa.bool_()),
        }
    )
