"""The paper's probe: two layers with ReLU, fitted by Adam with a linear warm-up and a cosine decay (arXiv 2510.04064).

Several problems over the same states are trained side by side on the same batches, each on its own rows of them. The paper does
not say how wide the hidden layer is, nor the batch or the seed: WIDTH, BATCH and SEED are this project's choice.

Shape suffixes: N rows, B rows of a batch, D width, H hidden width, K classes, P problems.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from analyze.examples import SEED
from analyze.linear import Standardised
from analyze.moments import Floats, Target
from analyze.states import States

WIDTH = 256
"""Of the hidden layer."""
BATCH = 64
"""Rows of a step."""
_LEARNING_RATE = 1e-4
_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class MlpProbe:
    """Logits of each class from raw states, through a hidden layer."""

    weight_DH: NDArray[np.float32]
    """Of the hidden layer."""
    bias_H: NDArray[np.float32]
    """Of the hidden layer."""
    out_HK: NDArray[np.float32]
    """From the hidden layer to the classes."""
    out_K: NDArray[np.float32]
    """Bias of the classes."""

    gives = "logits"

    def around(self, origin_D: NDArray[np.floating]) -> "MlpProbe":
        """The same probe for states less an origin."""
        bias_H = self.bias_H + origin_D.astype(np.float64) @ self.weight_DH.astype(np.float64)
        return MlpProbe(self.weight_DH, bias_H.astype(np.float32), self.out_HK, self.out_K)


@dataclass(frozen=True, slots=True, eq=False)
class MlpProblem:
    """One probe to train."""

    rows_N: NDArray[np.bool_]
    """The rows it is trained on."""
    target: Target
    """Their classes."""
    unit: Standardised
    """Mean and spread of these rows."""


def fit_mlp(
    states: States, problems: Sequence[MlpProblem], epochs: int, weight_N: Floats | None = None, device: str = "cpu"
) -> list[MlpProbe]:
    """Train probes of the same number of classes.

    Args:
        epochs: how often each row is seen; 1 in the paper.
        weight_N: how much each row counts; 1 each without it.
        device: where to compute.

    Returns:
        For each problem a probe of states around their origin.
    """
    used_N = np.flatnonzero(np.any([problem.rows_N for problem in problems], axis=0))
    weight_PN = np.stack([problem.rows_N for problem in problems]).astype(np.float32)
    if weight_N is not None:
        weight_PN *= (weight_N / weight_N[used_N].mean()).astype(np.float32)
    code_PN = torch.from_numpy(np.stack([problem.target.code_N for problem in problems]))
    training = _Training(problems, states.width, math.ceil(len(used_N) / BATCH) * epochs, device)
    order = np.random.default_rng(SEED)
    x_ND = _in_memory(states)
    for _ in range(epochs):
        shuffled = order.permutation(used_N)
        for begin in range(0, len(shuffled), BATCH):
            rows = torch.from_numpy(shuffled[begin : begin + BATCH])
            training.step(x_ND[rows], code_PN[:, rows], torch.from_numpy(weight_PN)[:, rows])
    return training.probes(problems)


def _in_memory(states: States) -> torch.Tensor:
    """All states around their origin (N, D), in half the bytes where they come so."""
    x_ND = torch.empty(states.n_rows, states.width)
    for rows, block_BD in states.blocks():
        x_ND[rows] = torch.from_numpy(block_BD)
    return x_ND


class _Training:
    """The weights of all problems and their optimiser."""

    def __init__(self, problems: Sequence[MlpProblem], width: int, n_steps: int, device: str) -> None:
        (n_classes,) = {problem.target.n_classes for problem in problems}
        generator = torch.Generator().manual_seed(SEED)
        n = len(problems)
        self._device = torch.device(device)
        self._mean_PD = torch.tensor(np.stack([problem.unit.mean_D for problem in problems]), device=self._device).float()
        self._scale_PD = torch.tensor(np.stack([problem.unit.scale_D for problem in problems]), device=self._device).float()

        def uniform(inputs: int, *shape: int) -> torch.Tensor:  # as torch.nn.Linear begins
            values = (torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(inputs)
            return values.to(self._device).requires_grad_()

        self._weights = [
            uniform(width, n, width, WIDTH),
            uniform(width, n, 1, WIDTH),
            uniform(WIDTH, n, WIDTH, n_classes),
            uniform(WIDTH, n, 1, n_classes),
        ]
        self._adam = torch.optim.Adam(self._weights, lr=_LEARNING_RATE)
        n_warm = max(1, round(_WARM_UP * n_steps))

        def rate(step: int) -> float:
            if step < n_warm:
                return (step + 1) / n_warm
            return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adam, rate)

    def step(self, x_BD: torch.Tensor, code_PB: torch.Tensor, weight_PB: torch.Tensor) -> None:
        """Learn from one batch."""
        weight_DH, bias_H, out_HK, out_K = self._weights
        x_PBD = (x_BD.to(self._device)[None] - self._mean_PD[:, None]) / self._scale_PD[:, None]
        hidden_PBH = torch.baddbmm(bias_H, x_PBD, weight_DH).relu()
        log_PBK = torch.baddbmm(out_K, hidden_PBH, out_HK).log_softmax(dim=2)
        of_true_PB = log_PBK.gather(2, code_PB.to(self._device)[:, :, None])[:, :, 0]
        weight_PB = weight_PB.to(self._device)
        loss_P = -(of_true_PB * weight_PB).sum(dim=1) / weight_PB.sum(dim=1).clamp(min=1)
        self._adam.zero_grad()
        loss_P.sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        self._adam.step()
        self._schedule.step()

    def probes(self, problems: Sequence[MlpProblem]) -> list[MlpProbe]:
        """The probes as they are now, for states that are not standardised."""
        weight_PDH, bias_P1H, out_PHK, out_P1K = (weights.detach().cpu().double().numpy() for weights in self._weights)
        found = []
        for index, problem in enumerate(problems):
            weight_DH = weight_PDH[index] / problem.unit.scale_D[:, None]
            bias_H = bias_P1H[index, 0] - problem.unit.mean_D @ weight_DH
            found.append(_single(weight_DH, bias_H, out_PHK[index], out_P1K[index, 0]))
        return found


def _single(weight_DH: Floats, bias_H: Floats, out_HK: Floats, out_K: Floats) -> MlpProbe:
    return MlpProbe(*(values.astype(np.float32) for values in (weight_DH, bias_H, out_HK, out_K)))
