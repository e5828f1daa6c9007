"""The unit of work: one shard of one run, from token ids to a receipt. Executors only decide where and when it runs.

A shard is a fixed range of corpus rows and is batched from its own rows alone, so that any worker on any day makes
the same bytes for it. Work stealing inside a shard was rejected: it would tie the bytes to who computed them.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from extract.compute import Computed, compute_shard, write_replies
from extract.decoding import Reply, replies_table
from extract.documents import Receipt, now
from extract.engine import engine
from extract.loading import load_tokenizer
from extract.models import Model
from extract.store import Store
from extract.stored_run import StoredRun
from extract.tokens import Prompt, offsets_of, replied, tokens_digest

_RECORDED_LIBRARIES = ("affectome", "torch", "transformers", "tokenizers", "zarr", "numpy")


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to extract."""

    store: str
    """The store's directory or URL."""
    run_id: str
    """The run, 16 hex digits."""
    shard: int
    """Number of the shard, from 0."""
    model_directory: Path
    """Where the run's model is on this machine."""
    device: str
    """Device of torch to compute on; several with commas between for one model over all of them."""


def extract_shards(tasks: Iterable[ShardTask], on_rows: Callable[[int], None] = lambda _: None) -> list[Receipt]:
    """Compute shards one after another in this thread, make each durable and commit it.

    Off the CPU another thread writes a shard while the next is computed; a crash may then cost two shards. On the CPU writing
    would only take from computing (a hundredth of the time, benchmarks/engine.py), and a crash costs one.

    Args:
        on_rows: called with the number of rows computed, batch by batch.

    Returns:
        Each shard's receipt: this attempt's, or that of another attempt which committed first.

    Raises:
        ExtractionError: a hidden state is not finite or does not fit the stored dtype.
        ValueError: the run's tables or the model cannot be read.
    """
    receipts: list[Receipt] = []
    with ThreadPoolExecutor(max_workers=1) as writer:
        before: tuple[ShardTask, Future[Committed | None]] | None = None
        for task in tasks:
            work = begin(task, on_rows)
            if before is not None:  # so that no more than two shards are in memory
                receipts.append((before[1].result() or extract_shard(before[0])).receipt)
                before = None
            if task.device == "cpu":
                receipts.append((work.commit() or extract_shard(task)).receipt)
            else:
                before = task, writer.submit(work.commit)
        if before is not None:
            receipts.append((before[1].result() or extract_shard(before[0])).receipt)
    return receipts


def extract_shard(task: ShardTask, on_rows: Callable[[int], None] = lambda _: None) -> "Committed":
    """Compute one shard, make it durable and commit it, as often as it is taken back meanwhile; as `extract_shards`."""
    while True:
        done = begin(task, on_rows).commit()
        if done is not None:
            return done


@dataclass(frozen=True, slots=True)
class Committed:
    """A shard that exists."""

    receipt: Receipt
    """Its receipt."""
    here: bool
    """Whether this attempt made it, and not one that was there before or came first."""

    def commit(self) -> "Committed":
        """There is nothing left to do."""
        return self


@dataclass(frozen=True, slots=True)
class Attempt:
    """A shard that is computed and not yet written."""

    task: ShardTask
    """Which."""
    run: StoredRun
    """The run it belongs to."""
    entry: int
    """Place of its receipt in the shard's log."""
    prompts: Sequence[Prompt]
    """What was computed, without replies."""
    replies: Sequence[Reply]
    """What the model said, where the run keeps that."""
    n_halved: int
    """Batches of replies that were halved for lack of memory."""
    row_offsets: Sequence[int]
    """Where each row's own tokens begin among those of all."""
    found: Computed
    """What came of it."""
    forward: str
    """Whose forward pass computed it."""
    load_seconds: float
    """Wall time until the model was there."""
    reply_seconds: float
    """Wall time in which it wrote replies."""
    compute_seconds: float
    """Wall time after that."""

    def commit(self) -> Committed | None:
        """Make it durable and commit it.

        Returns:
            The shard, perhaps as another attempt committed it; None where an entry took its place that voids what was before,
            and the shard is to be done again.
        """
        began = time.perf_counter()
        run, shard, found = self.run, self.task.shard, self.found
        attempt, objects = run.write_attempt(shard, found.arrays, self.row_offsets, self._replies_table())
        write_seconds = time.perf_counter() - began
        start, stop = run.shard_rows(shard)
        receipt = Receipt(
            run_id=run.run_id,
            shard=shard,
            entry=self.entry,
            start=start,
            stop=stop,
            attempt=attempt,
            objects=objects,
            token_budget=run.manifest.token_budget,
            compression=run.manifest.compression,
            tokens=tokens_digest(self.prompts),
            n_tokens=sum(len(ids) for ids in [prompt.ids for prompt in self.prompts] + [reply.ids for reply in self.replies]),
            n_truncated=sum(prompt.truncated for prompt in self.prompts),
            n_computed=found.n_computed,
            n_shared=found.n_shared,
            forward=self.forward,
            n_halved=found.n_halved + self.n_halved,
            device=_device_name(self.task.device),
            host=platform.node(),
            seconds={
                "load": self.load_seconds,
                **({"reply": self.reply_seconds} if self.replies else {}),
                "compute": self.compute_seconds - found.copy_seconds,
                "copy": found.copy_seconds,
                "write": write_seconds,
            },
            versions={name: importlib.metadata.version(name) for name in _RECORDED_LIBRARIES},
            finished=now(),
        )
        if run.commit(receipt):
            return Committed(receipt, here=True)
        _, other = run.end_of_log(shard)
        return Committed(other, here=False) if other is not None else None

    def _replies_table(self) -> pa.Table | None:
        if not self.replies:
            return None
        tokenizer = load_tokenizer(Model(str(self.task.model_directory), self.task.model_directory))
        texts = [str(tokenizer.decode(list(reply.ids), skip_special_tokens=True)) for reply in self.replies]
        return replies_table(self.run.shard_rows(self.task.shard)[0], self.replies, texts)


def begin(task: ShardTask, on_rows: Callable[[int], None] = lambda _: None) -> Committed | Attempt:
    """Compute one shard, unless somebody has committed it; `commit` of what is returned makes it durable.

    Two halves, so that one shard can be computed while another is written.

    Raises:
        ExtractionError, ValueError: as from `extract_shards`.
    """
    run = Store.open(task.store).run(task.run_id)
    entry, receipt = run.end_of_log(task.shard)
    if receipt is not None:
        return Committed(receipt, here=False)
    began = time.perf_counter()
    prompts = run.prompts(task.shard)
    row_offsets = offsets_of(prompts)
    identity = run.manifest.identity
    loaded = engine(task.model_directory, identity, task.device)
    ready = time.perf_counter()
    replies, n_halved = (
        ([], 0) if identity.reply is None else write_replies(loaded, prompts, identity.reply, run.manifest.token_budget)
    )
    answered = time.perf_counter()
    read = [replied(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)] if replies else prompts
    found = compute_shard(loaded, run, task.shard, read, row_offsets, on_rows)
    seconds = (ready - began, answered - ready, time.perf_counter() - answered)
    return Attempt(task, run, entry, prompts, replies, n_halved, row_offsets, found, loaded.forward, *seconds)


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return f"{device} {torch.cuda.get_device_name(device.partition(',')[0])}"
    return f"{device} {platform.processor() or platform.machine()}"
