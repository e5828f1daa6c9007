"""What suits the device when a run is created, and is pinned in it: the precision to compute in, the tokens of a batch.

Both are measured. A table of processors and GPUs was rejected: it would be out of date, and wrong in a container that is
given half of one.
"""

import time
from collections.abc import Sequence
from functools import lru_cache

import torch

from extract.engine import Engine
from extract.sites import Site
from extract.tokens import Prompt

CPU_TOKENS = 4096
"""On a CPU products are as fast as they get from here on, and less than two thousand are slower (benchmarks/engine.py)."""

_MOST_GPU_TOKENS = 65_536
_LEAST_GPU_TOKENS = 1024
_TRIAL_TOKENS = 4096
_USED_SHARE = 0.6
"""Of the free memory of a GPU: batches differ in shape, and the one before is still there while the next is computed."""

_CLEARLY_FASTER = 1.2
_PRODUCT = (256, 1024, 1024)
_ROUNDS = 12


@lru_cache
def fastest_dtype(device: str) -> str:
    """bfloat16 where its matrix products are clearly faster than float32's, else float32, which is more precise.

    CUDA says itself whether it multiplies bfloat16.
    """
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    float32, bfloat16 = _product_seconds(device)
    return "bfloat16" if float32 > _CLEARLY_FASTER * bfloat16 else "float32"


def fit_token_budget(
    loaded: Engine, prompts: Sequence[Prompt], layers: Sequence[int], sites: Sequence[Site], offsets: Sequence[int]
) -> int:
    """The most tokens of a batch.

    On a GPU, as many as its free memory holds, by what the longest of these prompts take; elsewhere CPU_TOKENS.
    """
    if loaded.device.type != "cuda":
        return CPU_TOKENS
    trial: list[Prompt] = []
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.ids)):
        if trial and (len(trial) + 1) * len(trial[0].ids) > _TRIAL_TOKENS:
            break
        trial.append(prompt)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(loaded.device)
    torch.cuda.reset_peak_memory_stats(loaded.device)
    try:
        loaded.pool(trial, layers, sites, offsets)
    except torch.OutOfMemoryError:
        return _LEAST_GPU_TOKENS
    taken = torch.cuda.max_memory_allocated(loaded.device) - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(loaded.device)
    own = int(torch.cuda.get_per_process_memory_fraction(loaded.device) * total) - torch.cuda.memory_reserved(loaded.device)
    return tokens_that_fit(min(free, own), taken / (len(trial) * len(trial[0].ids)))


def tokens_that_fit(free_bytes: int, bytes_per_token: float) -> int:
    """A power of two, so that a little more or less free memory leaves the batches as they are."""
    fitting = max(1, int(_USED_SHARE * free_bytes / max(1.0, bytes_per_token)))
    return min(_MOST_GPU_TOKENS, 1 << (fitting.bit_length() - 1))


def _product_seconds(device: str) -> tuple[float, float]:
    """Seconds of a product in float32 and in bfloat16: the best of many that alternate, so that other work does not decide."""
    rows, inner, columns = _PRODUCT
    best = [float("inf"), float("inf")]
    for _ in range(_ROUNDS):
        for which, dtype in enumerate((torch.float32, torch.bfloat16)):
            left, right = (torch.ones(*shape, device=device, dtype=dtype) for shape in ((rows, inner), (inner, columns)))
            began = time.perf_counter()
            float((left @ right)[0, 0])  # reading a number waits for the device
            best[which] = min(best[which], time.perf_counter() - began)
    return best[0], best[1]
