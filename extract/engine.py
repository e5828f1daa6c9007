"""Token ids to pooled hidden states: one frozen model on one device, through hooks on its blocks.

Each block's output is pooled on the device the moment it exists and the forward pass ends after the deepest layer
asked for, so neither rows x tokens x layers nor logits are ever held. `output_hidden_states` was rejected: it keeps
every layer of every token and gives the last one after the final norm.

Batches are right-padded. Under causal attention no real token sees a padded one, so no mask is passed; whether a
model is causal is measured when it is loaded, not looked up, and one that is not gets a mask.

Shape suffixes: B rows of a batch, T tokens, O offsets, D width, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from extract.models import Model
from extract.quiet import quiet_transformers
from extract.sites import Site
from extract.tokens import Prompt

COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Precisions a model may run in; float16 overflows in models people use (docs/store.md, section 4)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What must be known of a model before a run of it can be planned."""

    n_layers: int
    """Number of blocks, L; layers are 0..L."""
    width: int
    """Width of the residual stream, D."""
    context: int
    """The most tokens the model reads at once."""


def read_shape(model: Model) -> Shape:
    """Read a model's shape from its configuration, without its weights.

    Raises:
        ValueError: the configuration is not one transformers knows, or it names no context.
    """
    try:
        config = AutoConfig.from_pretrained(model.directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read the configuration of {model.name}: {error}") from error
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    if context is None:
        raise ValueError(f"the configuration of {model.name} does not say how many tokens it reads; it is not supported yet")
    return Shape(text.num_hidden_layers, text.hidden_size, context)


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        ValueError: the directory holds none.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(model.directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the tokenizer of {model.name}: {error}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_weights(directory: Path, dtype: torch.dtype, attention: str) -> Any:
    """Load a model without its heads from safetensors, all of its weights.

    transformers fills weights that the files lack with random numbers and says so in a notice, so they are refused here; a
    pooler that comes after the blocks may be absent.

    Raises:
        ValueError: transformers cannot build the model, or weights are missing.
    """
    try:
        with quiet_transformers():
            model, loading = AutoModel.from_pretrained(
                directory,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, LookupError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot load the model in {directory}: {error}") from error
    lacking = sorted({*loading["missing_keys"], *(str(key[0]) for key in loading["mismatched_keys"])})
    lacking = [key for key in lacking if not key.startswith("pooler.")]
    if lacking:
        raise ValueError(f"the model in {directory} lacks {len(lacking)} of its weights (first: {lacking[0]})")
    return model


class _PassDone(Exception):  # noqa: N818 - not an error
    """Ends a forward pass after the deepest layer asked for."""


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
        self.causal = True
        """Whether a token's state is independent of the tokens after it; measured below with the mask left out."""
        self.causal = self._measure_causality()

    def pool(
        self, prompts: Sequence[Prompt], layers: Sequence[int], sites: Sequence[Site], offsets: Sequence[int] = ()
    ) -> dict[Site, torch.Tensor]:
        """Hidden states of one batch, pooled at each site.

        Args:
            prompts: rows of the batch, B of them, padded here to the longest.
            layers: ascending layers, L of them.
            sites: where to read.
            offsets: token offsets from the utterance's last token, O of them, for `offset` sites.

        Returns:
            For each site a tensor (L, B, D), (L, B, O, D) for `offset`, or (L, T, D) for `all` with the rows' own tokens
            one after another, on the engine's device: the compute dtype for single tokens, float32 for means.
        """
        readers = {site: _reader(site, prompts, offsets, self.device) for site in sites}
        pooled: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}

        def keep(hidden_BTD: torch.Tensor) -> None:
            for site, read in readers.items():
                pooled[site].append(read(hidden_BTD))

        self._forward(prompts, layers, keep)
        assert all(len(states) == len(layers) for states in pooled.values()), "the model's forward pass skipped a block"
        return {site: torch.stack(states) for site, states in pooled.items()}

    @torch.inference_mode()
    def _forward(self, prompts: Sequence[Prompt], layers: Sequence[int], keep: Any) -> None:
        """Run the model, calling `keep` with each asked layer's hidden_BTD in ascending order."""
        ids_BT, mask_BT = _pad(prompts, self.device)
        wanted, deepest = frozenset(layers), max(layers)

        def visit(layer: int, hidden_BTD: torch.Tensor) -> None:
            if layer in wanted:
                keep(hidden_BTD)
            if layer == deepest:
                raise _PassDone

        def before_first(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            visit(0, args[0] if args else kwargs["hidden_states"])

        def after(layer: int) -> Any:
            return lambda _module, _args, output: visit(layer, output if isinstance(output, torch.Tensor) else output[0])

        handles = [self._blocks[0].register_forward_pre_hook(before_first, with_kwargs=True)]
        handles += [block.register_forward_hook(after(index)) for index, block in enumerate(self._blocks, start=1)]
        arguments: dict[str, Any] = {} if self.causal else {"attention_mask": mask_BT}
        if hasattr(self._model.config.get_text_config(), "use_cache"):
            arguments["use_cache"] = False
        try:
            self._model(input_ids=ids_BT, **arguments)
        except _PassDone:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _measure_causality(self) -> bool:
        """Change the last of four tokens and see whether the states of the first three move at all.

        A causal model that rounds differently for reasons of its own counts as not causal, and gets a mask it does not need.
        """
        states: list[torch.Tensor] = []
        for last in (3, 4):
            prompt = Prompt((1, 2, 1, last), 0, 4, 4)
            self._forward([prompt], [len(self._blocks)], lambda hidden_BTD: states.append(hidden_BTD[0, :3].float()))
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


def plan_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group rows of similar length so that rows x longest stays within the budget.

    Args:
        lengths: tokens of each row.
        token_budget: the most tokens of a batch, padding included; a single longer row is a batch of its own.

    Yields:
        Row indexes of each batch; every row stands in exactly one. The order depends on the lengths alone.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def find_blocks(model: Any) -> nn.ModuleList:
    """The model's blocks in order.

    Raises:
        ValueError: there is no list of as many modules as the configuration has blocks.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return module
    raise ValueError(f"cannot find the {n_layers} blocks of {type(model).__name__}; this architecture is not supported yet")


def _pad(prompts: Sequence[Prompt], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a right-padded batch; what stands in the padding never matters, so it is 0."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids_BT = np.zeros((len(prompts), longest), np.int64)
    mask_BT = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt.ids)] = prompt.ids
        mask_BT[row, : len(prompt.ids)] = 1
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device)


def _reader(site: Site, prompts: Sequence[Prompt], offsets: Sequence[int], device: torch.device) -> Any:
    """The function from hidden_BTD to what one site keeps of it."""
    match site.position:
        case "mean":
            return _mean_reader([(prompt.start, prompt.stop) for prompt in prompts], device)
        case "prompt_mean":
            return _mean_reader([(0, prompt.prompt_stop) for prompt in prompts], device)
        case "first":
            return _token_reader([[prompt.start] for prompt in prompts], device, squeeze=True)
        case "last":
            return _token_reader([[prompt.stop - 1] for prompt in prompts], device, squeeze=True)
        case "prompt_last":
            return _token_reader([[prompt.prompt_stop - 1] for prompt in prompts], device, squeeze=True)
        case "offset":
            return _token_reader(
                [[prompt.stop - 1 + offset for offset in offsets] for prompt in prompts], device, squeeze=False
            )
        case "all":
            return _span_reader([(prompt.start, prompt.stop) for prompt in prompts], device)
    raise AssertionError(site)


def _token_reader(positions: list[list[int]], device: torch.device, squeeze: bool) -> Any:
    index_BO = torch.tensor(positions, device=device)
    row_B1 = torch.arange(len(positions), device=device).unsqueeze(1)

    def read(hidden_BTD: torch.Tensor) -> torch.Tensor:
        states_BOD = hidden_BTD[row_B1, index_BO]
        return states_BOD.squeeze(1) if squeeze else states_BOD

    return read


def _span_reader(spans: list[tuple[int, int]], device: torch.device) -> Any:
    row_T = torch.cat([torch.full((stop - start,), row) for row, (start, stop) in enumerate(spans)]).to(device)
    token_T = torch.cat([torch.arange(start, stop) for start, stop in spans]).to(device)
    return lambda hidden_BTD: hidden_BTD[row_T, token_T]


def _mean_reader(spans: list[tuple[int, int]], device: torch.device) -> Any:
    start_B1, stop_B1 = torch.tensor(spans, device=device).unsqueeze(2).unbind(1)

    def read(hidden_BTD: torch.Tensor) -> torch.Tensor:
        token_T = torch.arange(hidden_BTD.shape[1], device=device)
        inside_BT1 = ((token_T >= start_B1) & (token_T < stop_B1)).unsqueeze(2)
        sum_BD = torch.where(inside_BT1, hidden_BTD.float(), 0.0).sum(dim=1)
        return sum_BD / (stop_B1 - start_B1)

    return read
