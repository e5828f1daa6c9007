"""One model over several devices of a machine: consecutive blocks on each, what passes between them moved where it is needed.

Blocks take turns, so several devices are no faster than one: this is for models that one cannot hold. Splitting every product
over the devices (tensor parallel) was rejected: it needs a plan for each architecture and moves the bits. Layers are the same
whatever device computes them, so a run may be gone on with on other numbers of devices of one kind.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from extract.anatomy import find_blocks, find_final_norm


def spread(model: Any, devices: tuple[torch.device, ...]) -> Any:
    """Place a model on devices, in place.

    Args:
        devices: the first gets what comes before the blocks, the last what comes after them.

    Raises:
        ValueError: the model's blocks cannot be found.
    """
    blocks, norm = list(find_blocks(model)), find_final_norm(model)
    sizes = [sum(weight.numel() * weight.element_size() for weight in block.parameters()) for block in blocks]
    places = {block: devices[share] for block, share in zip(blocks, shares(sizes, len(devices)), strict=True)}
    if norm is not None:
        places[norm] = devices[-1]
    for module, device in places.items():
        module.to(device)
        module.register_forward_pre_hook(_moving_to(device), with_kwargs=True)
    _place_the_rest(model, set(places), devices[0])
    return model


def shares(sizes: Sequence[int], n_devices: int) -> list[int]:
    """A device for each block, ascending, so that each device holds about as much.

    Args:
        sizes: bytes of each block.
    """
    total, before, places = sum(sizes), 0, []
    for size in sizes:
        places.append(min(n_devices - 1, int((before + size / 2) * n_devices / total)))
        before += size
    return places


def _place_the_rest(module: nn.Module, placed: set[nn.Module], device: torch.device) -> None:
    """Embeddings and the like: every module that is not, and does not hold, one that has its place."""
    if module in placed:
        return
    if not any(child in placed for child in module.modules()):
        module.to(device)
        return
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        moved = tensor.to(device)
        setattr(module, name, nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved)
    for child in module.children():
        _place_the_rest(child, placed, device)


def _moving_to(device: torch.device) -> Any:
    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, tuple | list):  # such as cosines and sines
            return type(value)(move(each) for each in value)
        return value

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return move(args), {name: move(value) for name, value in kwargs.items()}

    return before
