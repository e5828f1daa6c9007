"""A forward pass by transformers itself, watched through hooks: the way that every architecture goes.

Batches are right-padded. Under causal attention no real token sees a padded one, so no mask is passed; whether a
model is causal is measured when it is loaded, not looked up, and one that is not gets a mask. `output_hidden_states` was
rejected: it keeps every layer of every token and gives the last one after the final norm.

Shape suffixes: B rows of a batch, T tokens of the longest, N tokens of the batch with padding (B x T), D width.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from extract.anatomy import find_blocks, find_contributions, find_final_norm, first_tensor
from extract.prefix import Prefix, empty_cache
from extract.tokens import Prompt

Visit = Callable[[str, int, torch.Tensor], None]
"""Called with a component, a layer and hidden_ND, whose memory is used again, the moment they are computed."""

Wanted = Mapping[str, frozenset[int]]
"""By component, the layers asked for."""


_logger = logging.getLogger(__name__)

_INSIDE = {"attn_out", "mlp_out"}
"""Components that are read inside of a block."""


class _PassDone(Exception):  # noqa: N818 - not an error
    """Ends a forward pass after the deepest state asked for."""


def deepest(wanted: Wanted) -> int:
    """The last layer that must be computed."""
    return max(layer for layers in wanted.values() for layer in layers)


class HookedPass:
    """A model of transformers whose forward pass hands out what is wanted of it, and ends there."""

    padded = True
    """Whether a batch computes as many tokens for each row as its longest has."""

    def __init__(self, model: Any, device: torch.device, compiled: bool = False) -> None:
        """Watch a model.

        Args:
            compiled: fuse what is element-wise in a block, where nothing inside of it is watched; takes a minute for the first
                batches.

        Raises:
            ValueError: its blocks cannot be found.
        """
        self._model, self._device = model, device
        self._blocks = find_blocks(model)
        self._found: dict[str, Mapping[int, nn.Module]] = {}
        self._compiled: list[Any] = []
        self.causal = True
        """Whether a token's state is independent of the tokens after it; measured below with the mask left out."""
        self.causal = self._measure_causality()
        if compiled:
            self._compile()

    @property
    def name(self) -> str:
        """What receipts call it."""
        return "transformers, compiled" if self._compiled else "transformers"

    def begins(self, prompts: Sequence[Prompt]) -> Sequence[int]:
        """Where each prompt's first token lies in hidden_ND."""
        longest = max(len(prompt.ids) for prompt in prompts)
        return range(0, len(prompts) * longest, longest)

    def forward(self, prompts: Sequence[Prompt], wanted: Wanted, visit: Visit, prefix: Prefix | None = None) -> None:
        """Compute a batch, calling `visit` with what is wanted of it in the order of computation.

        Args:
            prefix: what comes before these prompts, of which they are the rests.
        """
        self._forward(prompts, wanted, visit, None if prefix is None else prefix.cache())

    def cached(self, prompt: Prompt, wanted: Wanted, visit: Visit) -> DynamicCache:
        """Compute one prompt, keeping the keys and values of every block that is computed."""
        cache = empty_cache()
        self._forward([prompt], wanted, visit, cache)
        return cache

    def check_components(self, components: Iterable[str]) -> None:
        """Make sure that the model has the components.

        Raises:
            ValueError: it has not, or where they are cannot be told.
        """
        for component in components:
            self._modules(component)

    @torch.inference_mode()
    def _forward(self, prompts: Sequence[Prompt], wanted: Wanted, visit: Visit, cache: Cache | None) -> None:
        ids_BT, mask_BT = _pad(prompts, self._device)
        arguments: dict[str, Any] = {} if self.causal else {"attention_mask": mask_BT}
        if cache is not None:
            arguments |= {"past_key_values": cache, "use_cache": True}
        elif hasattr(self._model.config.get_text_config(), "use_cache"):
            arguments["use_cache"] = False
        handles = self._listen(wanted, visit)
        try:
            with self._fused(cache is None and not _INSIDE & set(wanted)):
                self._model(input_ids=ids_BT, **arguments)
        except _PassDone:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _compile(self) -> None:
        """Compile the blocks, where the machine has what that needs; a trial says so at once, not the first batch."""
        prompt = Prompt((1, 2, 1, 3), 0, 4, 4)
        try:
            self._compiled = [torch.compile(block.forward, dynamic=True) for block in self._blocks]
            self.forward([prompt, prompt], {"resid": frozenset({len(self._blocks)})}, lambda *_: None)
        except Exception as error:  # whatever a compiler or a kernel raises: all that is lost is speed
            _logger.info("blocks are not compiled: %s", error)
            self._compiled = []

    @contextmanager
    def _fused(self, possible: bool) -> Iterator[None]:
        """Blocks compute by their compiled forward, which knows neither hooks inside of a block nor caches of ours."""
        fused = list(zip(self._blocks, self._compiled, strict=True)) if possible and self._compiled else []
        for block, forward in fused:
            block.forward = forward
        try:
            yield
        finally:
            for block, _ in fused:
                del block.forward  # the class's own is behind it

    def _listen(self, wanted: Wanted, visit: Visit) -> list[Any]:
        """Hooks that hand out what is wanted and end the pass behind the deepest of it."""
        last = deepest(wanted)
        through_norm = bool(wanted.get("final_norm"))

        def hand_out(component: str, layer: int, output: Any) -> None:
            hidden = first_tensor(output)
            assert hidden is not None, f"{component} of layer {layer} is no tensor"
            visit(component, layer, hidden.reshape(-1, hidden.shape[-1]).to(self._device))  # from where its block is

        def after(component: str, layer: int) -> Any:
            return lambda _module, _args, output: hand_out(component, layer, output)

        def before_first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hand_out("resid", 0, args[0] if args else kwargs["hidden_states"])

        def end(*_: Any) -> None:
            raise _PassDone

        parts = {component: self._modules(component) for component in wanted}  # may run the model, so before any hook is there
        handles = []
        if 0 in wanted.get("resid", ()):
            handles.append(self._blocks[0].register_forward_pre_hook(before_first, with_kwargs=True))
        for component, layers in wanted.items():
            handles += [parts[component][layer].register_forward_hook(after(component, layer)) for layer in layers if layer]
        if not through_norm:
            block = self._blocks[max(last - 1, 0)]
            handles.append(block.register_forward_hook(end) if last else block.register_forward_pre_hook(end))
        return handles

    def _modules(self, component: str) -> Mapping[int, nn.Module]:
        """By layer, the modules whose output a component is."""
        if component not in self._found:
            self._found[component] = self._find_modules(component)
        return self._found[component]

    def _find_modules(self, component: str) -> Mapping[int, nn.Module]:
        match component:
            case "resid":
                return dict(enumerate(self._blocks, start=1))
            case "attn_out":
                return {i: found.attention for i, found in enumerate(find_contributions(self._model), start=1)}
            case "mlp_out":
                return {i: found.mlp for i, found in enumerate(find_contributions(self._model), start=1)}
            case "final_norm":
                norm = find_final_norm(self._model)
                if norm is None:
                    raise ValueError(
                        f"{type(self._model).__name__} has no norm after its last block, so there is no final_norm"
                    )
                return {len(self._blocks): norm}
        raise AssertionError(component)

    def _measure_causality(self) -> bool:
        """Change the last of four tokens and see whether the states of the first three move at all.

        A causal model that rounds differently for reasons of its own counts as not causal, and gets a mask it does not need.
        """
        states: list[torch.Tensor] = []
        for last in (3, 4):
            prompt = Prompt((1, 2, 1, last), 0, 4, 4)
            wanted = {"resid": frozenset({len(self._blocks)})}
            self.forward([prompt], wanted, lambda _component, _layer, hidden_ND: states.append(hidden_ND[:3].float()))
        return torch.equal(states[0], states[1])


def _pad(prompts: Sequence[Prompt], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a right-padded batch; what stands in the padding never matters, so it is 0."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids_BT = np.zeros((len(prompts), longest), np.int64)
    mask_BT = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt.ids)] = prompt.ids
        mask_BT[row, : len(prompt.ids)] = 1
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device)
