"""How far bfloat16 is from float32, layer by layer, beside plain transformers in bfloat16; and what a batch has to do with it.

    python benchmarks/precision.py [--model NAME] [--corpus FILE] [--rows 2000]

The reference is plain transformers in float32, one text at a time. An error is the relative L2 error of one text at one
layer; its distribution has a long tail, so the median and the 99th percentile count. "Moved" compares affectome's
bfloat16 with itself when a text stands alone in its batch: what the neighbours of a text do to its numbers.

Shape suffixes: N texts, L layers, D width.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from first_run import commit, processor
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from extract.anatomy import find_blocks
from extract.batches import plan_packed_batches, plan_padded_batches
from extract.budget import CPU_TOKENS
from extract.corpus import read_corpus
from extract.engine import Engine
from extract.loading import default_attention, load_tokenizer, load_weights
from extract.models import Model, find_model
from extract.packages import BUILTIN
from extract.sites import Site
from extract.templates import Template
from extract.tokens import Prompt

SITES = (Site("resid", "last"), Site("resid", "mean"))
States = NDArray[np.float32]
"""(2, N, L + 1, D): last and mean."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUILTIN)
    parser.add_argument("--corpus", default="builtin")
    parser.add_argument("--rows", type=int, default=2000)
    arguments = parser.parse_args()
    model = find_model(arguments.model)
    texts = read_corpus(arguments.corpus).head(arguments.rows).table["text"].to_pylist()
    prompts = list(Template("raw", load_tokenizer(model)).prompts(texts))
    reference = plain(model, prompts, torch.float32)
    theirs = errors(plain(model, prompts, torch.bfloat16), reference)
    console = Console(highlight=False)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    console.print(f"{arguments.model}, {len(texts):,} texts")
    exact = errors(affectome(model, "float32", prompts, CPU_TOKENS), reference)
    console.print(f"affectome in float32: {exact.max():.1e} at worst")
    batched = affectome(model, "bfloat16", prompts, CPU_TOKENS)
    assert np.array_equal(batched, affectome(model, "bfloat16", prompts, CPU_TOKENS)), "twice the same differs"
    console.print("affectome in bfloat16, twice: the same bytes")
    ours, moved = errors(batched, reference), errors(batched, affectome(model, "bfloat16", prompts, 1))
    console.print(
        f"texts whose bfloat16 states are the same bytes alone and among others: {(moved == 0).all(axis=(0, 2)).mean():.1%}"
    )
    console.print(table(ours, theirs, moved))
    for name, quantile in (("median", 0.5), ("99th percentile", 0.99)):
        ratio = np.quantile(ours, quantile, axis=1) / np.maximum(np.quantile(theirs, quantile, axis=1), 1e-12)
        console.print(f"{name}, affectome over transformers, worst layer: {ratio.max():.2f}")


@torch.inference_mode()
def plain(model: Model, prompts: Sequence[Prompt], dtype: torch.dtype) -> States:
    """Plain transformers, one text at a time."""
    loaded: Any = load_weights(model.directory, dtype, default_attention(model)).eval()
    caught: list[torch.Tensor] = []
    find_blocks(loaded)[-1].register_forward_hook(
        lambda _m, _a, out: caught.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    states = []
    for prompt in track(prompts, f"transformers in {dtype}"):
        hidden = loaded(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
        own_LTD = torch.stack([*hidden[:-1], caught.pop()])[:, 0, prompt.start : prompt.stop].float()
        states.append(torch.stack([own_LTD[:, -1], own_LTD.mean(dim=1)]))
    return torch.stack(states, dim=1).numpy()


def affectome(model: Model, dtype: str, prompts: Sequence[Prompt], token_budget: int) -> States:
    """The engine, in batches as a run cuts them."""
    loaded = Engine(model.directory, dtype, default_attention(model), "cpu")
    lengths = [len(prompt.ids) for prompt in prompts]
    batches = list((plan_padded_batches if loaded.padded else plan_packed_batches)(lengths, token_budget))
    states: dict[int, torch.Tensor] = {}
    for rows in track(batches, f"affectome in {dtype}, {token_budget} tokens a batch"):
        pooled = loaded.pool([prompts[row] for row in rows], range(loaded.n_layers + 1), SITES)
        together = torch.stack([pooled[site].float() for site in SITES])
        states |= {row: together[:, :, place] for place, row in enumerate(rows)}
    return torch.stack([states[row] for row in range(len(prompts))], dim=1).numpy()


def errors(one: States, other: States) -> NDArray[np.float32]:
    """(2, N, L + 1) relative L2 errors."""
    found: NDArray[np.float32] = np.linalg.norm(one - other, axis=-1) / np.linalg.norm(other, axis=-1)
    return found


def table(ours: NDArray[np.float32], theirs: NDArray[np.float32], moved: NDArray[np.float32]) -> Table:
    """Median and 99th percentile by layer, at both sites."""
    result = Table("site", "layer", "affectome", "transformers", "moved", title="relative L2 error: median, 99th percentile")
    for site, *by_site in zip(SITES, ours, theirs, moved, strict=True):
        for layer in range(ours.shape[2]):
            cells = [f"{np.median(each[:, layer]):.4f}, {np.quantile(each[:, layer], 0.99):.4f}" for each in by_site]
            result.add_row(str(site), str(layer), *cells)
    return result


if __name__ == "__main__":
    main()
