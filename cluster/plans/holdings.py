"""What a store held of a plan in one moment, found by manifests, receipts and kept results; no model is loaded for it.

A run is recognised by its manifest: the same commit or weights, texts, template, sites, layers and precision. Computing the
run's id instead was rejected: it holds digests of files that would have to be fetched first.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from analyze import results
from analyze.persistence import PersistenceResult, continued_request
from analyze.probes import ProbeResult, ProbeSpec
from analyze.query import Run
from cluster.pipeline import passage_text
from cluster.plans.models import PassedOver, PlannedModel
from cluster.plans.schema import Persistence
from extract.corpus import Corpus
from extract.documents import Manifest
from extract.identity import sha256_hex
from extract.loading import load_tokenizer
from extract.models import find_model
from extract.request import Request
from extract.sites import Site, parse_layers, parse_sites
from extract.store import STORE_FILE, Store
from extract.stored_run import StoredRun, through_parquet
from extract.templates import CHAT, Template

LAYER_SITE = "resid.last"
"""The site whose best layer persistence is measured at."""

_OWN_COLUMNS = ("row", "n_tokens")
_LABEL_COLUMNS = ("label", "split", "pair_id")
_WRITERS_OF_THE_DATE = ("strftime_now", "date_string")


@dataclass(frozen=True, slots=True)
class CorpusDigests:
    """What tells a corpus from another; computed once, for it takes a second or two of a large one."""

    texts: str
    """Of its ids and texts, as in a run's identity."""
    columns: Mapping[str, str]
    """Of each column, as it reads once it was stored."""

    @classmethod
    def of(cls, corpus: Corpus) -> "CorpusDigests":
        """Those of a corpus."""
        return cls(corpus.digest, _column_digests(through_parquet(corpus.table)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run that should exist."""

    weights: str | None
    """Identity of its weights; None where that is not known yet."""
    tokenizer: str | None
    """Digest of its tokenizer; None where the weights' identity stands for it."""
    chat: str | None
    """What a local model's chat template comes to; None where it is not asked for, or the commit stands for it."""
    request: Request
    """What would be asked of an extraction; its template is one that manifests keep: `raw`, `chat` or Jinja."""
    corpus_digest: str
    """Of the request's corpus: its ids and texts."""
    columns: Mapping[str, str]
    """A digest of each of its columns, as they read once they were stored."""

    @classmethod
    def of(cls, model: PlannedModel, request: Request, corpus: "CorpusDigests") -> "Wanted":
        """A run of a plan's model."""
        local_chat = model.tokenizer is not None and request.template == CHAT
        chat = _chat_text(model.name, request) if local_chat else None
        return cls(model.weights, model.tokenizer, chat, request, corpus.texts, corpus.columns)

    def is_run(self, manifest: Manifest) -> bool:
        """Whether a manifest is that of such a run."""
        identity, request = manifest.identity, self.request
        return (
            (identity.weights, identity.corpus) == (self.weights, self.corpus_digest)
            and self.tokenizer in (None, identity.tokenizer)
            and self.chat in (None, identity.template)
            and (manifest.template, manifest.system) == (request.template, request.system)
            and (manifest.date == request.date or not _writes_the_date(manifest))
            and (identity.continuation, identity.offsets) == (request.continuation, request.offsets)
            and identity.sites == tuple(map(str, parse_sites(request.sites)))
            and identity.layers == _layers(request.layers, manifest.n_layers)
            and request.compute_dtype in ("auto", identity.compute_dtype)
            and request.attention in ("auto", identity.attention)
            and (identity.stored_dtype, identity.truncate) == (request.stored_dtype, request.truncate)
            and identity.reply == request.reply
        )

    @property
    def peers(self) -> tuple[object, ...]:
        """What runs have in common that are compared: utterances, template and sites."""
        sites = tuple(map(str, parse_sites(self.request.sites)))
        return self.corpus_digest, self.request.continuation, self.request.template, self.request.system, sites


def peers_of(manifest: Manifest) -> tuple[object, ...]:
    """The same of a run that is there."""
    identity = manifest.identity
    return identity.corpus, identity.continuation, manifest.template, manifest.system, identity.sites


def _chat_text(name: str, request: Request) -> str | None:
    try:
        return Template(CHAT, load_tokenizer(find_model(name)), request.system, request.date).text
    except ValueError:  # extracting says what is wrong with it
        return None


def _writes_the_date(manifest: Manifest) -> bool:
    return manifest.template == CHAT and any(name in manifest.identity.template for name in _WRITERS_OF_THE_DATE)


def _layers(text: str, n_layers: int) -> tuple[int, ...] | None:
    try:
        return parse_layers(text, n_layers)
    except ValueError:  # this model has no such layer
        return None


class Holdings:
    """What a store held in one moment. What is read once, is kept; look again to see a later state."""

    def __init__(self, location: str) -> None:
        """Look at a store, which need not be there yet.

        Raises:
            ValueError: something else is there.
        """
        place = Store.check(location)
        self.store = Store(place) if place.exists(STORE_FILE) else None
        """The store; None where there is none yet."""
        self.runs: list[StoredRun] = []
        """Its runs, the oldest first."""
        self.damaged: list[PassedOver] = []
        """Runs whose manifest cannot be read."""
        self._missing: dict[str, int] = {}
        self._columns: dict[str, Mapping[str, str]] = {}
        self._probes: dict[str, list[ProbeResult]] = {}
        self._persistence: dict[tuple[str, Persistence], PersistenceResult | None] = {}
        if self.store is not None:
            self._read_manifests(self.store)

    def _read_manifests(self, store: Store) -> None:
        def read(run_id: str) -> StoredRun | PassedOver:
            try:
                return store.run(run_id)
            except ValueError as error:
                return PassedOver(f"run {run_id}", str(error))

        with ThreadPoolExecutor(store.objects.concurrency) as pool:
            for found in pool.map(read, store.run_ids()):
                if isinstance(found, StoredRun):
                    self.runs.append(found)
                else:
                    self.damaged.append(found)
        self.runs.sort(key=lambda run: (run.manifest.created, run.run_id))

    def find(self, wanted: Wanted) -> StoredRun | None:
        """The run that is wanted, one without missing rows where several fit.

        Raises:
            ValueError: a receipt is damaged.
        """
        fitting = [run for run in self.runs if wanted.is_run(run.manifest)]
        return min(fitting, key=self.rows_missing, default=None)

    def rows_missing(self, run: StoredRun) -> int:
        """Rows of shards that do not exist.

        Raises:
            ValueError: a receipt is damaged.
        """
        if run.run_id not in self._missing:
            self._missing[run.run_id] = run.manifest.n_rows - sum(receipt.n_rows for receipt in run.receipts())
        return self._missing[run.run_id]

    def columns(self, run: StoredRun) -> Mapping[str, str]:
        """A digest of each column of a run's utterances that came with the corpus.

        Raises:
            ValueError: the run's table is damaged.
        """
        if run.run_id not in self._columns:
            self._columns[run.run_id] = _column_digests(run.table("utterances").drop_columns(list(_OWN_COLUMNS)))
        return self._columns[run.run_id]

    def labelled_alike(self, one: StoredRun, other: StoredRun) -> bool:
        """Whether probes of two runs of the same texts learn and are asked the same.

        Raises:
            ValueError: the table of one is damaged.
        """
        return all(self.columns(one).get(name) == self.columns(other).get(name) for name in _LABEL_COLUMNS)

    def probes(self, run: StoredRun, kind: str) -> dict[str, ProbeResult]:
        """Kept probes of one kind of all layers, by site.

        Raises:
            ValueError: a kept result is damaged.
        """
        if run.run_id not in self._probes:
            self._probes[run.run_id] = results.probes(Run(run))
        return {
            kept.site: kept
            for kept in self._probes[run.run_id]
            if kept.spec == ProbeSpec(kind) and tuple(entry.layer for entry in kept.layers) == run.layers(kept.site)
        }

    def persistence(self, run: StoredRun, wanted: Persistence) -> PersistenceResult | None:
        """The kept persistence that a plan wants, at the best layer of the kept probe of LAYER_SITE.

        Raises:
            ValueError: a kept result is damaged, or the run has no usable labels.
        """
        key = run.run_id, wanted
        if key not in self._persistence:
            self._persistence[key] = self._find_persistence(run, wanted)
        return self._persistence[key]

    def _find_persistence(self, run: StoredRun, wanted: Persistence) -> PersistenceResult | None:
        probe, opened = self.probes(run, wanted.kind).get(LAYER_SITE), Run(run)
        if probe is None:
            return None
        there = [kept for kept in results.persistence(opened) if (kept.layer, kept.kind) == (probe.best_layer, wanted.kind)]
        if not there:
            return None
        request = continued_request(opened, (probe.best_layer,), passage_text(wanted.passage), wanted.per_label)
        continued = Wanted(run.manifest.identity.weights, None, None, request, request.corpus.digest, {})
        fitting = {other.run_id for other in self.runs if continued.is_run(other.manifest)}
        return next((kept for kept in there if kept.continued_run_id in fitting), None)


def pooled_sites(run: StoredRun) -> list[str]:
    """Sites that keep one vector for each utterance, which probes read."""
    return [site for site in run.manifest.identity.sites if Site.parse(site).pooled]


def _column_digests(table: pa.Table) -> Mapping[str, str]:
    """Of each column its type and values; as text, because a NaN equals no NaN."""
    return {
        name: sha256_hex(repr((str(table.schema.field(name).type), table[name].to_pylist())).encode())
        for name in table.column_names
    }
