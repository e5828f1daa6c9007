"""Token ids to pooled hidden states: one frozen model on one device.

Each block's output is pooled on the device the moment it exists and the forward pass ends after the deepest layer
asked for, so neither rows x tokens x layers nor logits are ever held. Two ways compute a batch: transformers itself, watched
through hooks (extract.hooked), and our own pass for the blocks that most models share (extract.packed), where it agrees.
Where a run keeps replies, the model has its head beside, and writes them first (extract.writing).

Shape suffixes: B rows of a batch, N tokens of the batch as they lie, S tokens that are read, O offsets, D width, L layers.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from extract.anatomy import find_blocks
from extract.decoding import Decoding, Reply
from extract.hooked import HookedPass, deepest
from extract.identity import Identity
from extract.loading import COMPUTE_DTYPES, load_weights, reply_ends
from extract.models import Model
from extract.packed import PackedPass, packed_pass
from extract.pooling import reader
from extract.prefix import Prefix, goes_on_from_keys_and_values, keys_and_values, shared_length
from extract.rotary import turns_from
from extract.sites import Site
from extract.spread import spread
from extract.tokens import Prompt
from extract.writing import Writer


class Engine:
    """A loaded model that turns batches of prompts into pooled hidden states."""

    def __init__(self, directory: Path, dtype: str, attention: str, device: str, writes: bool = False) -> None:
        """Load weights from safetensors.

        Args:
            directory: a model directory (extract.models.Model.directory).
            dtype: a key of COMPUTE_DTYPES.
            attention: attention implementation of transformers; with `sdpa`, our own pass may compute what it can.
            device: device of torch, such as `cpu` or `cuda:0`; several with commas between for one model over all of them.
            writes: load the head too, for `write`.

        Raises:
            ValueError: transformers cannot build the model, weights are missing, its blocks cannot be found, or the device has
                too little memory for it; or a model over several devices is to write.
        """
        devices = tuple(map(torch.device, device.split(",")))
        if writes and len(devices) > 1:
            raise ValueError("a model over several devices cannot write replies yet; give a worker one device that holds it")
        whole = load_weights(directory, COMPUTE_DTYPES[dtype], attention, writes).eval().requires_grad_(False)
        whole = _on_devices(whole, devices)
        model = whole.base_model if writes else whole
        self._writer = Writer(whole, devices[0], reply_ends(directory)) if writes else None
        self._blocks = find_blocks(model)
        self.device = devices[0]
        """Where the model computes; the first where there are several, to which all states are brought."""
        alone = len(devices) == 1
        self._general = HookedPass(model, self.device, compiled=alone and self.device.type == "cuda")
        packs = alone and attention == "sdpa" and not writes  # the joined weights lie as transformers multiplies them slowest
        self._packed = packed_pass(model, self._general) if packs else None
        self._fetching = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's own
        self.turns_from = turns_from(model.config)
        """The most tokens of a prompt whose positions are turned as usual, where longer ones are not (extract.rotary)."""
        self._resumes = goes_on_from_keys_and_values(model)

    @property
    def n_layers(self) -> int:
        """Number of blocks, L."""
        return len(self._blocks)

    @property
    def causal(self) -> bool:
        """Whether a token's state is independent of the tokens after it."""
        return self._general.causal

    @property
    def forward(self) -> str:
        """Whose forward pass computes batches: `transformers`, `transformers, compiled` or `packed`."""
        return self._way.name

    @property
    def padded(self) -> bool:
        """Whether a batch costs as many tokens for each row as its longest has."""
        return self._way.padded

    @property
    def _way(self) -> HookedPass | PackedPass:
        return self._packed or self._general

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
        self._general.check_components(components)

    def share(
        self, prompts: Sequence[Prompt], layers: Sequence[int], sites: Sequence[Site], offsets: Sequence[int] = ()
    ) -> Prefix | None:
        """Compute what all prompts begin with, for `pool`; None where that is nothing, too little, or cannot be gone on from.

        Args:
            layers, sites, offsets: as for `pool`.
        """
        n_tokens = shared_length(prompts, offsets) if self.causal and self._resumes else 0
        wanted = self._wanted(layers, sites)
        if not n_tokens or not deepest(wanted):
            return None
        sums: dict[tuple[str, int], torch.Tensor] = {}

        def keep(component: str, layer: int, hidden_ND: torch.Tensor) -> None:
            sums[component, layer] = hidden_ND.float().sum(dim=0)

        cache = self._general.cached(Prompt(prompts[0].ids[:n_tokens], 0, n_tokens, n_tokens), wanted, keep)
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
            prompts: rows of the batch, B of them.
            layers: ascending layers.
            sites: where to read; of each, the L of these layers that exist there (`Site.layers`).
            offsets: token offsets, O of them, for `offset` and `reply` sites.
            prefix: what these prompts begin with, from `share` with the same layers, sites and offsets.

        Returns:
            For each site a tensor (L, B, D), (L, B, O, D) for `offset` and `reply`, or (L, S, D) for `all` with the rows' own
            tokens one after another, on the engine's device: the compute dtype for single tokens, float32 for means.
        """
        rests = prompts if prefix is None else [prefix.rest(prompt) for prompt in prompts]
        begins_B = self._way.begins(rests)
        readers = [(site, reader(site, rests, begins_B, offsets, self.device)) for site in sites]
        n_rest_B1 = torch.tensor([[prompt.prompt_stop] for prompt in rests], device=self.device)
        wanted = self._wanted(layers, sites)
        pooled: dict[Site, torch.Tensor] = {}
        places = {site: {layer: i for i, layer in enumerate(site.layers(layers, self.n_layers))} for site in sites}

        def keep(component: str, layer: int, hidden_ND: torch.Tensor) -> None:
            for site, read in readers:
                if site.component == component:
                    states = read(hidden_ND)
                    if prefix is not None and site.position == "prompt_mean":
                        states = prefix.mean_with(states, n_rest_B1, component, layer)
                    if site not in pooled:  # all layers at once: joining them later would take twice the memory
                        pooled[site] = states.new_empty((len(places[site]), *states.shape))
                    pooled[site][places[site].pop(layer)] = states

        self._way.forward(rests, wanted, keep, prefix)
        assert not any(places.values()), "the model's forward pass skipped a block"
        return pooled

    def write(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Reply]:
        """The model's replies to one batch of prompts, in order."""
        assert self._writer is not None, "loaded without its head"
        return self._writer.write(prompts, decoding)

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
        if self._packed is not None:
            self._packed.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _wanted(self, layers: Sequence[int], sites: Sequence[Site]) -> dict[str, frozenset[int]]:
        """By component, the layers that some site reads."""
        return {site.component: frozenset(site.layers(layers, self.n_layers)) for site in sites}


_loaded: dict[tuple[object, ...], Engine] = {}
"""The one engine of this process, where it has one."""


def engine(directory: Path, identity: Identity, device: str) -> Engine:
    """The engine for a run, loaded once per process and only if it is the model the run was planned with.

    The weights are a part of what it is remembered by: a directory that was saved again in the meantime is loaded again.

    Raises:
        ValueError: the directory holds other weights.
    """
    weights, dtype, attention, writes = identity.weights, identity.compute_dtype, identity.attention, identity.reply is not None
    key = (str(directory), weights, dtype, attention, device, writes, identity.reply_ends)
    if key not in _loaded:
        if weights.startswith("sha256:") and Model(str(directory), directory).weights_identity != weights:
            raise ValueError(f"the weights in {directory} are not those the run was planned with")
        if writes and reply_ends(directory) != identity.reply_ends:
            raise ValueError(f"the tokens that end a reply of the model in {directory} are not those the run was planned with")
        forget_engine()  # first, or two models would be in memory at once
        _loaded[key] = Engine(directory, dtype, attention, device, writes)
    return _loaded[key]


def forget_engine() -> None:
    """Give back the memory of the engine that this process has loaded."""
    _loaded.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def default_device() -> str:
    """The device a single process uses: the first CUDA device where there is one, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return "cuda:0"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def all_devices() -> str:
    """Every CUDA device that this process may use, for one model over all of them; the default device where there is none."""
    return ",".join(f"cuda:{index}" for index in range(torch.cuda.device_count())) or default_device()


def limit_gpu_memory(share: float) -> None:
    """Keep this process to a share of its first GPU, where others compute on the same; 1.0 for all of it."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share, 0)


def _on_devices(model: Any, devices: tuple[torch.device, ...]) -> Any:
    try:
        return model.to(devices[0]) if len(devices) == 1 else spread(model, devices)
    except torch.OutOfMemoryError as error:
        gibibytes = sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 2**30
        raise ValueError(
            f"the model's weights take {gibibytes:.1f} GiB in {model.dtype}, more than {', '.join(map(str, devices))} "
            "can hold; free memory, take larger devices or a smaller model, or give a worker several with --gpus-per-worker"
        ) from error
