"""Token ids to pooled hidden states: one frozen model on one device, through hooks on its blocks.

Each block's output is pooled on the device the moment it exists and the forward pass ends after the deepest layer
asked for, so neither rows x tokens x layers nor logits are ever held. `output_hidden_states` was rejected: it keeps
every layer of every token and gives the last one after the final norm.

Batches are right-padded. Under causal attention no real token sees a padded one, so no mask is passed; whether a
model is causal is measured when it is loaded, not looked up, and one that is not gets a mask.

Shape suffixes: B rows of a batch, T tokens of the longest, N tokens of the batch with padding (B x T), S tokens that are
read, O offsets, D width, L layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.pytorch_utils import Conv1D

from extract.anatomy import find_blocks, find_contributions, find_final_norm, first_tensor
from extract.loading import COMPUTE_DTYPES, load_weights
from extract.models import Model
from extract.pooling import reader
from extract.prefix import Prefix, empty_cache, goes_on_from_keys_and_values, keys_and_values, shared_length
from extract.sites import Site
from extract.tokens import Prompt


class _PassDone(Exception):  # noqa: N818 - not an error
    """Ends a forward pass after the deepest state asked for."""


Visit = Callable[[str, int, torch.Tensor], None]
"""Called with a component, a layer and hidden_ND when they are computed."""


class Engine:
    """A loaded model that turns batches of prompts into pooled hidden states."""

    def __init__(self, directory: Path, dtype: str, attention: str, device: str) -> None:
        """Load weights from safetensors.

        Args:
            directory: a model directory (extract.models.Model.directory).
            dtype: a key of COMPUTE_DTYPES.
            attention: attention implementation of transformers.
            device: device of torch, such as `cpu` or `cuda:0`.

        Raises:
            ValueError: transformers cannot build the model, weights are missing, or its blocks cannot be found.
        """
        model = load_weights(directory, COMPUTE_DTYPES[dtype], attention)
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._blocks = find_blocks(self._model)
        self.device = torch.device(device)
        """Where the model computes."""
        self._fetching = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's own
        self._found: dict[str, Mapping[int, nn.Module]] = {}
        self._resumes = goes_on_from_keys_and_values(self._model)
        self.causal = True
        """Whether a token's state is independent of the tokens after it; measured below with the mask left out."""
        self.causal = self._measure_causality()

    @property
    def n_layers(self) -> int:
        """Number of blocks, L."""
        return len(self._blocks)

    def block_weights(self, deepest: int) -> list[torch.Tensor]:
        """The weights of every linear map in the first blocks, (out, in) each; not of experts stacked in one tensor."""
        modules = [module for block in self._blocks[:deepest] for module in block.modules()]
        linears = [module.weight for module in modules if isinstance(module, nn.Linear)]
        return linears + [module.weight.T for module in modules if isinstance(module, Conv1D)]

    def check_components(self, components: Iterable[str]) -> None:
        """Make sure that the model has the components.

        Raises:
            ValueError: it has not, or where they are cannot be told.
        """
        for component in components:
            self._modules(component)

    def share(
        self, prompts: Sequence[Prompt], layers: Sequence[int], sites: Sequence[Site], offsets: Sequence[int] = ()
    ) -> Prefix | None:
        """Compute what all prompts begin with, for `pool`; None where that is nothing, too little, or cannot be gone on from.

        Args:
            layers, sites, offsets: as for `pool`.
        """
        n_tokens = shared_length(prompts, offsets) if self.causal and self._resumes else 0
        wanted = self._wanted(layers, sites)
        if not n_tokens or not _deepest(wanted):
            return None
        sums: dict[tuple[str, int], torch.Tensor] = {}

        def keep(component: str, layer: int, hidden_ND: torch.Tensor) -> None:
            sums[component, layer] = hidden_ND.float().sum(dim=0)

        cache = empty_cache()
        self._forward([Prompt(prompts[0].ids[:n_tokens], 0, n_tokens, n_tokens)], wanted, keep, cache)
        return Prefix(n_tokens, keys_and_values(cache), sums)

    def pool(
        self,
        prompts: Sequence[Prompt],
        layers: Sequence[int],
        sites: Sequence[Site],
        offsets: Sequence[int] = (),
        prefix: Prefix | None = None,
    ) -> dict[Site, torch.Tensor]:
        """Hidden states of one batch, pooled at each site.

        Args:
            prompts: rows of the batch, B of them, padded here to the longest.
            layers: ascending layers.
            sites: where to read; of each, the L of these layers that exist there (`Site.layers`).
            offsets: token offsets from the utterance's last token, O of them, for `offset` sites.
            prefix: what these prompts begin with, from `share` with the same layers, sites and offsets.

        Returns:
            For each site a tensor (L, B, D), (L, B, O, D) for `offset`, or (L, S, D) for `all` with the rows' own tokens
            one after another, on the engine's device: the compute dtype for single tokens, float32 for means.
        """
        rests = prompts if prefix is None else [prefix.rest(prompt) for prompt in prompts]
        longest = max(len(prompt.ids) for prompt in rests)
        begins_B = range(0, len(rests) * longest, longest)
        readers = [(site, reader(site, rests, begins_B, offsets, self.device)) for site in sites]
        n_rest_B1 = torch.tensor([[prompt.prompt_stop] for prompt in rests], device=self.device)
        wanted = self._wanted(layers, sites)
        pooled: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}

        def keep(component: str, layer: int, hidden_ND: torch.Tensor) -> None:
            for site, read in readers:
                if site.component == component:
                    states = read(hidden_ND)
                    if prefix is not None and site.position == "prompt_mean":
                        states = prefix.mean_with(states, n_rest_B1, component, layer)
                    pooled[site].append(states)

        self._forward(rests, wanted, keep, None if prefix is None else prefix.cache())
        for site, states in pooled.items():
            assert len(states) == len(wanted[site.component]), "the model's forward pass skipped a block"
        return {site: torch.stack(states) for site, states in pooled.items()}

    def mark(self) -> Any:
        """When what was asked of the device so far is computed; for `after`."""
        if self._fetching is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
        event.record(torch.cuda.current_stream(self.device))
        return event

    @contextmanager
    def after(self, mark: Any) -> Iterator[None]:
        """Work on tensors of the device from a moment on, beside what it was asked to do after that."""
        if self._fetching is None:
            yield
            return
        self._fetching.wait_event(mark)
        with torch.cuda.stream(self._fetching):
            yield

    def free_memory(self) -> None:
        """Give back what the device holds for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _wanted(self, layers: Sequence[int], sites: Sequence[Site]) -> dict[str, frozenset[int]]:
        """By component, the layers that some site reads."""
        return {site.component: frozenset(site.layers(layers, self.n_layers)) for site in sites}

    @torch.inference_mode()
    def _forward(
        self, prompts: Sequence[Prompt], wanted: Mapping[str, frozenset[int]], keep: Visit, cache: Cache | None = None
    ) -> None:
        """Run the model on a padded batch, calling `keep` with what is wanted of it in the order of computation.

        Args:
            cache: keys and values of the tokens before these; gets those of these tokens.
        """
        ids_BT, mask_BT = _pad(prompts, self.device)
        arguments: dict[str, Any] = {} if self.causal else {"attention_mask": mask_BT}
        if cache is not None:
            arguments |= {"past_key_values": cache, "use_cache": True}
        elif hasattr(self._model.config.get_text_config(), "use_cache"):
            arguments["use_cache"] = False
        handles = self._listen(wanted, keep)
        try:
            self._model(input_ids=ids_BT, **arguments)
        except _PassDone:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _listen(self, wanted: Mapping[str, frozenset[int]], keep: Visit) -> list[Any]:
        """Hooks that hand out what is wanted and end the pass behind the deepest of it."""
        deepest = _deepest(wanted)
        through_norm = bool(wanted.get("final_norm"))

        def visit(component: str, layer: int, output: Any) -> None:
            hidden = first_tensor(output)
            assert hidden is not None, f"{component} of layer {layer} is no tensor"
            keep(component, layer, hidden.reshape(-1, hidden.shape[-1]))

        def after(component: str, layer: int) -> Any:
            return lambda _module, _args, output: visit(component, layer, output)

        def before_first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            visit("resid", 0, args[0] if args else kwargs["hidden_states"])

        def end(*_: Any) -> None:
            raise _PassDone

        parts = {component: self._modules(component) for component in wanted}  # may run the model, so before any hook is there
        handles = []
        if 0 in wanted.get("resid", ()):
            handles.append(self._blocks[0].register_forward_pre_hook(before_first, with_kwargs=True))
        for component, layers in wanted.items():
            handles += [parts[component][layer].register_forward_hook(after(component, layer)) for layer in layers if layer]
        if not through_norm:
            block = self._blocks[max(deepest - 1, 0)]
            handles.append(block.register_forward_hook(end) if deepest else block.register_forward_pre_hook(end))
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
                return {self.n_layers: norm}
        raise AssertionError(component)

    def _measure_causality(self) -> bool:
        """Change the last of four tokens and see whether the states of the first three move at all.

        A causal model that rounds differently for reasons of its own counts as not causal, and gets a mask it does not need.
        """
        states: list[torch.Tensor] = []
        for last in (3, 4):
            prompt = Prompt((1, 2, 1, last), 0, 4, 4)
            wanted = {"resid": frozenset({self.n_layers})}
            self._forward([prompt], wanted, lambda _component, _layer, hidden_ND: states.append(hidden_ND[:3].float()))
        return torch.equal(states[0], states[1])


@lru_cache(maxsize=1)
def engine(directory: Path, weights: str, dtype: str, attention: str, device: str) -> Engine:
    """The engine for a model, loaded once per process and only if it is the model a run was planned with.

    Args:
        weights: the weights' identity (extract.models.Model.weights_identity); a part of the key, so that a directory that
            was saved again in the meantime is loaded again.

    Raises:
        ValueError: the directory holds other weights.
    """
    if weights.startswith("sha256:") and Model(str(directory), directory).weights_identity != weights:
        raise ValueError(f"the weights in {directory} are not those the run was planned with")
    return Engine(directory, dtype, attention, device)


def default_device() -> str:
    """The device a single process uses: the first CUDA device where there is one, else the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _deepest(wanted: Mapping[str, frozenset[int]]) -> int:
    return max(layer for layers in wanted.values() for layer in layers)


def _pad(prompts: Sequence[Prompt], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a right-padded batch; what stands in the padding never matters, so it is 0."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids_BT = np.zeros((len(prompts), longest), np.int64)
    mask_BT = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt.ids)] = prompt.ids
        mask_BT[row, : len(prompt.ids)] = 1
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device)
