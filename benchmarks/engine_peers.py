"""One way to get every layer's hidden states at the last token and their mean, timed pass by pass; run by engine.py.

    python benchmarks/engine_peers.py NAME MODEL_DIRECTORY TEXTS.json

For each line on standard input it makes one pass over the texts and prints the seconds that took, tokenizing included.
Each way keeps what affectome keeps: (layers, 2, width) a text, on the host in the model's precision. nnsight and
TransformerLens come from benchmarks/requirements-peers.txt.

Shape suffixes: B texts of a batch, T tokens, D width, L layers.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

Pass = Callable[[list[str]], int]
"""Extracts all texts and returns how many real tokens they had."""

_TOKENS_A_BATCH = 2048


def main() -> None:
    """Answer each line with one pass."""
    name, directory, texts_file = sys.argv[1:]
    texts = json.loads(Path(texts_file).read_text("utf-8"))
    with torch.inference_mode():
        one_pass = WAYS[name](directory)
        print("ready", flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            n_tokens = one_pass(texts)
            print(json.dumps([time.perf_counter() - began, n_tokens]), flush=True)


def transformers_common(directory: str) -> Pass:
    """As commonly written: float32, dataset order, 32 texts a batch, `output_hidden_states`."""
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()

    def one_pass(texts: list[str]) -> int:
        n_tokens = 0
        for first in range(0, len(texts), 32):
            batch = tokenizer(texts[first : first + 32], padding=True, return_tensors="pt")
            hidden = model(**batch, output_hidden_states=True).hidden_states
            lengths_B = batch["attention_mask"].sum(dim=1)
            _keep(torch.stack(hidden), lengths_B)
            n_tokens += int(lengths_B.sum())
        return n_tokens

    return one_pass


def transformers_tuned(directory: str) -> Pass:
    """As well as it goes without another library: bfloat16, sorted by length, 2,048 tokens a batch, no mask, no head."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.bfloat16).eval()

    def one_pass(texts: list[str]) -> int:
        for ids_BT, lengths_B in _sorted_batches(tokenizer, texts):
            hidden = model(input_ids=ids_BT, output_hidden_states=True, use_cache=False).hidden_states
            _keep(torch.stack(hidden), lengths_B)
        return _n_tokens(tokenizer, texts)

    return one_pass


def nnsight_sorted(directory: str) -> Pass:
    """nnsight in bfloat16, sorted, stopped after the last block."""
    from nnsight import LanguageModel

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = LanguageModel(directory, dtype=torch.bfloat16, device_map="cpu", dispatch=True)
    blocks = model.model.layers

    def one_pass(texts: list[str]) -> int:
        for ids_BT, lengths_B in _sorted_batches(tokenizer, texts):
            mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
            with model.trace({"input_ids": ids_BT, "attention_mask": mask_BT}) as tracer:
                saved = list().save()  # type: ignore[attr-defined]  # nnsight gives every object this method  # noqa: C408
                saved.append(model.model.embed_tokens.output)
                for block in blocks:
                    saved.append(block.output)
                tracer.stop()
            _keep(torch.stack([each if isinstance(each, torch.Tensor) else each[0] for each in saved]), lengths_B)
        return _n_tokens(tokenizer, texts)

    return one_pass


def transformer_lens_sorted(directory: str) -> Pass:
    """TransformerLens' bridge in bfloat16, sorted, stopped after the last block."""
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = TransformerBridge.boot_transformers(directory, device="cpu", dtype=torch.bfloat16)
    names = {"blocks.0.hook_in", *(f"blocks.{i}.hook_out" for i in range(model.cfg.n_layers))}

    def one_pass(texts: list[str]) -> int:
        for ids_BT, lengths_B in _sorted_batches(tokenizer, texts):
            _, cache = model.run_with_cache(
                ids_BT, names_filter=lambda name: name in names, stop_at_layer=model.cfg.n_layers, return_cache_object=False
            )
            _keep(torch.stack([each if isinstance(each, torch.Tensor) else each[0] for each in cache.values()]), lengths_B)
        return _n_tokens(tokenizer, texts)

    return one_pass


WAYS: dict[str, Callable[[str], Pass]] = {
    "transformers, as commonly written": transformers_common,
    "transformers, tuned": transformers_tuned,
    "nnsight": nnsight_sorted,
    "TransformerLens": transformer_lens_sorted,
}


def _sorted_batches(tokenizer: Any, texts: list[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded ids and lengths of batches of similar length."""
    rows = sorted(tokenizer(texts)["input_ids"], key=len, reverse=True)
    while rows:
        n_rows = max(1, _TOKENS_A_BATCH // len(rows[0]))
        batch, rows = rows[:n_rows], rows[n_rows:]
        ids_BT = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
        for row, ids in enumerate(batch):
            ids_BT[row, : len(ids)] = torch.tensor(ids)
        yield ids_BT, torch.tensor([len(ids) for ids in batch])


def _keep(hidden_LBTD: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """Last token and mean, on the host."""
    last_LBD = hidden_LBTD[:, torch.arange(len(lengths_B)), lengths_B - 1]
    inside_BT1 = (torch.arange(hidden_LBTD.shape[2]) < lengths_B[:, None])[..., None]
    mean_LBD = (hidden_LBTD * inside_BT1).sum(dim=2, dtype=torch.float32) / lengths_B[:, None]
    return torch.stack([last_LBD, mean_LBD.to(last_LBD.dtype)]).cpu()


def _n_tokens(tokenizer: Any, texts: list[str]) -> int:
    return sum(map(len, tokenizer(texts)["input_ids"]))


if __name__ == "__main__":
    main()
