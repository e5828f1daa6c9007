"""How fast extraction is on this machine, beside what its matrix products alone would take.

The limit multiplies random tokens by the weights of every linear map in the blocks, at the model's own shapes and in its
precision, and does nothing else: no attention, no norms, no tokenizer, no disk. Peak numbers of a data sheet were
rejected as a limit: no program reaches them at the shapes of a small model.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import linear

from extract.engine import Engine, default_device, engine
from extract.request import Request
from extract.run import Plan, plan_run
from extract.shard import extract_shards

LIMIT_TOKENS = (1024, 2048, 4096)
"""Batch sizes at which the limit is measured; the best counts."""

_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Speed:
    """What one extraction took."""

    device: str
    """Where it computed."""
    dtype: str
    """Compute dtype."""
    n_rows: int
    """Utterances."""
    n_tokens: int
    """Tokens that went through the model, padding not counted."""
    plan_seconds: float
    """Tokenizing, and making the run."""
    compute_seconds: float
    """From token ids to pooled hidden states."""
    copy_seconds: float
    """Bringing those to the host in stored form; on a GPU while it computes what follows."""
    write_seconds: float
    """Making them durable; of all shards but the last while the next is computed."""
    seconds: float
    """All of it, but loading the model."""
    n_bytes: int
    """What was written."""
    limit: float
    """Tokens/s of the matrix products alone."""
    peak_bytes: int
    """Most memory this process has held; on a GPU, most memory of the GPU."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens by the time of all of it."""
        return self.n_tokens / self.seconds

    @property
    def share(self) -> float:
        """Share of the matrix-product limit."""
        return self.tokens_per_second / self.limit


def measure_speed(request: Request) -> Speed:
    """Extract into a temporary store on one device, with the model loaded before the clock starts.

    Raises:
        ValueError: as from `plan_run`.
    """
    with tempfile.TemporaryDirectory() as directory:
        few = plan_run(replace(request, corpus=request.corpus.head(8)), f"{directory}/warm")
        extract_shards(few.tasks())
        loaded = _engine_of(few)
        if loaded.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(loaded.device)
        began = time.perf_counter()
        plan = plan_run(request, f"{directory}/store")
        planned = time.perf_counter()
        receipts = extract_shards(plan.tasks())
        done = time.perf_counter()
    compute, copy, write = (sum(receipt.seconds[stage] for receipt in receipts) for stage in ("compute", "copy", "write"))
    return Speed(
        device=receipts[0].device,
        dtype=plan.run.manifest.identity.compute_dtype,
        n_rows=sum(receipt.n_rows for receipt in receipts),
        n_tokens=sum(receipt.n_computed for receipt in receipts),
        plan_seconds=planned - began,
        compute_seconds=compute,
        copy_seconds=copy,
        write_seconds=write,
        seconds=done - began,
        n_bytes=sum(receipt.n_bytes for receipt in receipts),
        limit=product_limit(loaded, max(1, *plan.run.manifest.identity.layers)),
        peak_bytes=_peak_bytes(loaded.device),
    )


def product_limit(loaded: Engine, deepest: int, sizes: Sequence[int] = LIMIT_TOKENS) -> float:
    """Tokens/s when the linear maps of blocks 1 to `deepest` are all there is to do, at the best of some batch sizes."""
    weights = loaded.block_weights(deepest)
    return max(n_tokens / _products_seconds(loaded.device, weights, n_tokens) for n_tokens in sizes)


@torch.inference_mode()
def _products_seconds(device: torch.device, weights: Sequence[torch.Tensor], n_tokens: int) -> float:
    inputs = {(weight.device, weight.shape[1]): _random(n_tokens, weight) for weight in weights}

    def multiply() -> None:
        for weight in weights:
            linear(inputs[weight.device, weight.shape[1]], weight)
        if device.type == "cuda":
            for each in {weight.device for weight in weights}:
                torch.cuda.synchronize(each)

    multiply()
    return statistics.median(_seconds(multiply) for _ in range(_REPEATS))


def _random(n_tokens: int, weight: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator(device=weight.device).manual_seed(0)
    return torch.randn(n_tokens, weight.shape[1], generator=generator, device=weight.device, dtype=weight.dtype)


def _engine_of(plan: Plan) -> Engine:
    return engine(plan.model.directory, plan.run.manifest.identity, default_device())


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
