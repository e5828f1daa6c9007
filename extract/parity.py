"""Does the engine agree with plain transformers? Every layer, text by text, against a float32 reference at batch 1.

The reference is transformers' own `hidden_states`, except for the last layer, which transformers hands out after the
final norm: there the reference is the last block's output, and the final norm of the engine's state is compared with
what transformers hands out. The texts go through the engine in one padded batch, so that padding, pooling and layer
numbering are all under test.

Shape suffixes: L layers, B texts, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from extract.anatomy import find_blocks, find_final_norm
from extract.batches import plan_padded_batches
from extract.engine import Engine
from extract.loading import default_attention, load_tokenizer, load_weights, read_shape
from extract.models import Model
from extract.sites import Site
from extract.templates import Template
from extract.tokens import Prompt

TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
"""Largest relative L2 error that passes: at worst for float32, at the median for bfloat16, which has heavy tails."""

_SITES = (Site("resid", "last"), Site("resid", "mean"))
_TOKEN_BUDGET = 4096


@dataclass(frozen=True, slots=True)
class LayerParity:
    """Relative L2 error of one layer, over texts."""

    layer: str
    """The layer's number, or `final_norm` for the last layer's state after the final norm."""
    last_median: float
    """At `resid.last`: median over texts."""
    last_worst: float
    """At `resid.last`: largest."""
    mean_median: float
    """At `resid.mean`: median over texts."""
    mean_worst: float
    """At `resid.mean`: largest."""

    def passes(self, dtype: str) -> bool:
        """Whether the errors are within the tolerance of a compute dtype."""
        worst = max(self.last_worst, self.mean_worst) if dtype == "float32" else max(self.last_median, self.mean_median)
        return worst <= TOLERANCES[dtype]


def check_parity(
    model: Model, dtype: str, texts: Sequence[str], device: str, on_text: Callable[[int], None] = lambda _: None
) -> list[LayerParity]:
    """Compare the engine in `dtype` with plain transformers in float32.

    Args:
        on_text: called with the number of texts compared.

    Returns:
        One entry a layer, and one for the final norm where the model has one.
    """
    prompts = list(Template("raw", load_tokenizer(model)).prompts(texts))
    layers = range(read_shape(model).n_layers + 1)
    engine = Engine(model.directory, dtype, default_attention(model), device)
    ours_LBD = _engine_states(engine, prompts, layers)
    reference = _Reference(model, device)
    theirs = []
    for prompt in prompts:
        theirs.append(reference.states(prompt))
        on_text(1)
    entries = [
        _entry(
            str(layer),
            [_error(ours_LBD[site][layer], np.stack([states[site][layer] for states in theirs])) for site in _SITES],
        )
        for layer in layers
    ]
    if reference.final_norm is not None:
        # only the last token: the norm of a mean is not the mean of norms
        normed_BD = reference.normed(ours_LBD[_SITES[0]][-1])
        error_B = _error(normed_BD, np.stack([states[_SITES[0]][-1] for states in theirs]))
        entries.append(_entry("final_norm", [error_B, error_B]))
    return entries


class _Reference:
    """Plain transformers, float32, one text at a time."""

    def __init__(self, model: Model, device: str) -> None:
        self._model = load_weights(model.directory, torch.float32, "eager")
        self._model.eval().to(device)
        self._device = device
        self.final_norm = find_final_norm(self._model)
        """The norm after the last block, if the model has one."""

    @torch.inference_mode()
    def states(self, prompt: Prompt) -> dict[Site, NDArray[np.float32]]:
        """Per site (L + 2, D): the layers, and at the end what transformers hands out as its last hidden state."""
        caught: list[torch.Tensor] = []
        handle = find_blocks(self._model)[-1].register_forward_hook(
            lambda _module, _args, output: caught.append(output if isinstance(output, torch.Tensor) else output[0])
        )
        try:
            ids = torch.tensor([prompt.ids], device=self._device)
            hidden = self._model(input_ids=ids, output_hidden_states=True).hidden_states
        finally:
            handle.remove()
        states_LTD = torch.stack([*hidden[:-1], caught[0], hidden[-1]])[:, 0, prompt.start : prompt.stop].cpu()
        return {_SITES[0]: states_LTD[:, -1].numpy(), _SITES[1]: states_LTD.double().mean(dim=1).float().numpy()}

    @torch.inference_mode()
    def normed(self, states_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """The final norm of some states."""
        assert self.final_norm is not None
        normed: NDArray[np.float32] = self.final_norm(torch.from_numpy(states_BD).to(self._device)).cpu().numpy()
        return normed


def _engine_states(engine: Engine, prompts: Sequence[Prompt], layers: Sequence[int]) -> dict[Site, NDArray[np.float32]]:
    result: dict[Site, NDArray[np.float32]] = {}
    for batch in plan_padded_batches([len(prompt.ids) for prompt in prompts], _TOKEN_BUDGET):
        for site, states_LBD in engine.pool([prompts[row] for row in batch], layers, _SITES).items():
            shape = (len(layers), len(prompts), states_LBD.shape[-1])
            result.setdefault(site, np.empty(shape, np.float32))[:, batch] = states_LBD.float().cpu().numpy()
    return result


def _error(ours_BD: NDArray[np.float32], theirs_BD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Relative L2 error of each row."""
    difference_B = np.linalg.norm(ours_BD.astype(np.float64) - theirs_BD, axis=1)
    relative_B: NDArray[np.float64] = difference_B / np.linalg.norm(theirs_BD.astype(np.float64), axis=1)
    return relative_B


def _entry(layer: str, errors: Sequence[NDArray[np.float64]]) -> LayerParity:
    last_B, mean_B = errors
    return LayerParity(layer, float(np.median(last_B)), float(last_B.max()), float(np.median(mean_B)), float(mean_B.max()))
