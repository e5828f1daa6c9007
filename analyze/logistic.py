"""Multinomial logistic regression, many problems over the same states at once, to the optimum of each.

The folds of cross-validation, the strengths of a path and shuffled labels are problems that share their states, so every pass
over a layer serves them all: two matrix products with as many columns as there are problems times classes. L-BFGS runs in
coordinates in which the problem is nearly round, W = L^-T V with L L' = c X'X + I/C from the layer's moments: tens of
passes instead of hundreds, because states have a few directions of huge variance. Rounding again from the curvature of a
better fit saved a third of the passes and cost as much as it saved. Stochastic solvers were rejected: where they end
depends on a learning rate.

The objective is scikit-learn's (LogisticRegression with lbfgs): the sum of weighted log losses plus |W|^2 / (2 C), states
standardised by the rows of the problem, intercepts free; two classes share one weight vector.

Shape suffixes: N rows, B rows of a block, D width, K classes, P problems, M = (D + 1) K parameters of a problem.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from analyze.linear import LinearProbe, Standardised
from analyze.moments import Floats, Target
from analyze.states import States

_CURVATURE = 0.12  # p (1 - p) for seven equal classes
_GAP = 1e-6  # half the squared gradient, of the loss; where classes lie apart it can still fall by more than that
_LEAST_LOSS = 1e-2  # nats a row
_MOST_STEPS = 500
_MEMORY = 20
_SUFFICIENT = 1e-4
_ROUNDING = 1e-7
_MOST_HALVINGS = 20
_MOST_KEPT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One regression."""

    rows_N: NDArray[np.bool_]
    """The rows it is fitted on."""
    target: Target
    """Their classes."""
    unit: Standardised
    """Mean and spread of these rows."""
    total: float
    """Their weights added up."""
    c: float
    """Inverse strength of the penalty, scikit-learn's C."""


def fit_logistic(
    states: States, problems: Sequence[Problem], weight_N: Floats | None = None, device: str = "cpu"
) -> list[LinearProbe]:
    """Solve problems of the same number of classes.

    Args:
        weight_N: how much each row counts; 1 each without it.
        device: where to compute.

    Returns:
        For each problem a probe of states around their origin, that gives logits.

    Raises:
        RuntimeError: the optimum was not reached.
    """
    objective = _Objective(states, problems, weight_N, device)
    return objective.probes(_minimise(objective))


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows that some problem uses."""

    x_BD: torch.Tensor
    code_BP: torch.Tensor
    weight_BP: torch.Tensor


class _Objective:
    """Loss and gradient of all problems in rounded coordinates."""

    def __init__(self, states: States, problems: Sequence[Problem], weight_N: Floats | None, device: str) -> None:
        self._states, self._problems, self._device = states, problems, torch.device(device)
        (self._n_classes,) = {problem.target.n_classes for problem in problems}
        self._weight_NP = np.stack([problem.rows_N for problem in problems], axis=1).astype(np.float32)
        if weight_N is not None:
            self._weight_NP *= weight_N.astype(np.float32)[:, None]
        self._used_N: NDArray[np.bool_] = self._weight_NP.max(axis=1) > 0
        self._code_NP = np.stack([problem.target.code_N.astype(np.int32) for problem in problems], axis=1)
        self._penalty_P = self._double([1 / problem.c for problem in problems])
        self._scale_PD = self._double(np.stack([problem.unit.scale_D for problem in problems]))
        self._mean_PD = self._double(np.stack([problem.unit.mean_D for problem in problems]))
        self._factors = _factors(problems, self._device)
        self._intercept_scale_P = self._double([(_CURVATURE * problem.total) ** -0.5 for problem in problems])
        fits = 4 * int(self._used_N.sum()) * states.width <= _MOST_KEPT_BYTES
        self._kept = list(self._read()) if fits else None

    def _double(self, values: Sequence[float] | Floats) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float64, device=self._device)

    @property
    def least_loss(self) -> torch.Tensor:
        """Losses so small that float32 cannot tell them from 0."""
        return self._double([_LEAST_LOSS * problem.total for problem in self._problems])

    def start(self) -> torch.Tensor:
        """Where to begin, (P, D + 1, K): nothing read from the states, and the last row, intercepts, 0."""
        shape = len(self._problems), self._states.width + 1, self._n_classes
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def evaluate(self, v_PMK: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (P,) and gradient (P, D + 1, K) of some problems at their parameters."""
        w_PDK, raw_PDK, bias_PK = self._unrounded(v_PMK, which)
        loss_P, by_raw_PDK, by_bias_PK = self._pass(raw_PDK, bias_PK, which)
        loss_P = loss_P + 0.5 * self._penalty_P[which] * w_PDK.square().sum(dim=(1, 2))
        mean_PD, scale_PD = self._mean_PD[which], self._scale_PD[which]
        by_w_PDK = (by_raw_PDK - mean_PD[:, :, None] * by_bias_PK[:, None, :]) / scale_PD[:, :, None]
        by_w_PDK += self._penalty_P[which, None, None] * w_PDK
        by_v_PDK = torch.stack(
            [
                torch.linalg.solve_triangular(self._factors[self._problems[problem].c], by_w_DK, upper=False)
                for problem, by_w_DK in zip(which.tolist(), by_w_PDK, strict=True)
            ]
        )
        by_intercept_PK = by_bias_PK * self._intercept_scale_P[which, None]
        gradient_PMK = torch.cat([by_v_PDK, by_intercept_PK[:, None, :]], dim=1)
        if self._n_classes == 2:  # the first class is the reference: its scores stay 0
            gradient_PMK[:, :, 0] = 0
        return loss_P, gradient_PMK

    def probes(self, v_PMK: torch.Tensor) -> list[LinearProbe]:
        """The probes at some parameters of all problems."""
        _, raw_PDK, bias_PK = self._unrounded(v_PMK, torch.arange(len(v_PMK)))
        return [
            LinearProbe(raw_DK.cpu().numpy(), bias_K.cpu().numpy(), "logits")
            for raw_DK, bias_K in zip(raw_PDK, bias_PK, strict=True)
        ]

    def _unrounded(self, v_PMK: torch.Tensor, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights of standardised states, and weights and bias of states as they are."""
        w_PDK = torch.stack(
            [
                torch.linalg.solve_triangular(self._factors[self._problems[problem].c].T, v_DK, upper=True)
                for problem, v_DK in zip(which.tolist(), v_PMK[:, :-1], strict=True)
            ]
        )
        raw_PDK = w_PDK / self._scale_PD[which][:, :, None]
        bias_PK = v_PMK[:, -1] * self._intercept_scale_P[which, None]
        bias_PK = bias_PK - torch.einsum("pd,pdk->pk", self._mean_PD[which], raw_PDK)
        return w_PDK, raw_PDK, bias_PK

    def _pass(
        self, raw_PDK: torch.Tensor, bias_PK: torch.Tensor, which: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log loss and its gradient by raw weights and bias, over all rows."""
        n_problems, width, n_classes = raw_PDK.shape
        weight_DC = raw_PDK.float().permute(1, 0, 2).reshape(width, -1).contiguous()
        bias_C = bias_PK.float().reshape(-1)
        loss_P = torch.zeros(n_problems, dtype=torch.float64, device=self._device)
        by_raw_CD = torch.zeros(n_problems * n_classes, width, dtype=torch.float64, device=self._device)
        by_bias_PK = torch.zeros(n_problems, n_classes, dtype=torch.float64, device=self._device)
        for block in self._blocks():
            code_BP1, weight_BP = block.code_BP[:, which].long()[:, :, None], block.weight_BP[:, which]
            scores_BC = _product(block.x_BD, weight_DC).add_(bias_C)
            log_BPK = scores_BC.view(-1, n_problems, n_classes).log_softmax(dim=2)
            loss_P -= (log_BPK.gather(2, code_BP1)[:, :, 0] * weight_BP).sum(dim=0, dtype=torch.float64)
            error_BPK = log_BPK.exp_()
            error_BPK.scatter_add_(2, code_BP1, -torch.ones_like(code_BP1, dtype=torch.float32))
            error_BPK *= weight_BP[:, :, None]
            by_raw_CD += _product(error_BPK.view(len(weight_BP), -1).T, block.x_BD)
            by_bias_PK += error_BPK.sum(dim=0, dtype=torch.float64)
        return loss_P, by_raw_CD.view(n_problems, n_classes, width).transpose(1, 2), by_bias_PK

    def _blocks(self) -> Iterable[_Block]:
        return self._read() if self._kept is None else self._kept

    def _read(self) -> Iterator[_Block]:
        for rows, block_BD in self._states.blocks():
            used_B: NDArray[np.bool_] = self._used_N[rows]
            if used_B.any():
                parts = (block_BD[used_B], self._code_NP[rows][used_B], self._weight_NP[rows][used_B])
                yield _Block(*(torch.from_numpy(part).to(self._device) for part in parts))


def _factors(problems: Sequence[Problem], device: torch.device) -> dict[float, torch.Tensor]:
    """Lower factors (D, D) of what rounds the problems of each C; folds share one, which is as good as round for all."""
    lower: dict[float, torch.Tensor] = {}
    for problem in problems:
        if problem.c not in lower:
            round_DD = torch.from_numpy(problem.unit.covariance_DD * (_CURVATURE * problem.total)).to(device)
            round_DD.diagonal().add_(1 / problem.c)
            lower[problem.c] = torch.linalg.cholesky(round_DD)
    return lower


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A matrix product; on a CPU numpy's, which for one tall factor takes half as long as torch's or less."""
    if left.device.type != "cpu":
        return left @ right
    return torch.from_numpy(left.numpy() @ right.numpy())


def _minimise(objective: _Objective) -> torch.Tensor:
    """L-BFGS on every problem side by side (Nocedal & Wright, algorithm 7.5); those that are done drop out of the passes."""
    v_PMK = objective.start()
    active = torch.arange(len(v_PMK), device=v_PMK.device)
    loss_P, gradient_PMK = objective.evaluate(v_PMK, active)
    history = _History(v_PMK)
    for _ in range(_MOST_STEPS):
        gap_A = 0.5 * gradient_PMK[active].square().sum(dim=(1, 2))
        active = active[gap_A > _GAP * (loss_P + objective.least_loss)[active]]
        if not len(active):
            return v_PMK
        step_AMK = history.step(gradient_PMK, active)
        new_v, new_loss, new_gradient = _search(objective, v_PMK, loss_P, gradient_PMK, step_AMK, active)
        history.add(active, new_v - v_PMK[active], new_gradient - gradient_PMK[active])
        v_PMK[active], loss_P[active], gradient_PMK[active] = new_v, new_loss, new_gradient
    raise RuntimeError(f"logistic regression did not converge in {_MOST_STEPS} steps; use a stronger penalty (smaller C)")


def _search(
    objective: _Objective,
    v_PMK: torch.Tensor,
    loss_P: torch.Tensor,
    gradient_PMK: torch.Tensor,
    step_AMK: torch.Tensor,
    active: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Go as far along each step as makes the loss fall enough, halving where it does not (Armijo's condition)."""
    slope_A = (gradient_PMK[active] * step_AMK).sum(dim=(1, 2))
    size_A = torch.ones_like(slope_A)
    new_v = v_PMK[active] + step_AMK
    new_loss, new_gradient = objective.evaluate(new_v, active)
    for _ in range(_MOST_HALVINGS):
        allowed_A = loss_P[active] + _SUFFICIENT * size_A * slope_A + _ROUNDING * loss_P[active].abs()
        again = torch.nonzero(~(new_loss <= allowed_A))[:, 0]
        if not len(again):
            break
        size_A[again] /= 2
        new_v[again] = v_PMK[active[again]] + size_A[again, None, None] * step_AMK[again]
        new_loss[again], new_gradient[again] = objective.evaluate(new_v[again], active[again])
    return new_v, new_loss, new_gradient


class _History:
    """The last steps of each problem and how the gradient changed along them."""

    def __init__(self, like_PMK: torch.Tensor) -> None:
        self._like_PMK = like_PMK
        self._pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, active: torch.Tensor, moved_AMK: torch.Tensor, changed_AMK: torch.Tensor) -> None:
        """Remember a step of some problems."""
        moved_PMK, changed_PMK = torch.zeros_like(self._like_PMK), torch.zeros_like(self._like_PMK)
        moved_PMK[active], changed_PMK[active] = moved_AMK, changed_AMK
        product_P = (moved_PMK * changed_PMK).sum(dim=(1, 2))
        size_P = changed_PMK.square().sum(dim=(1, 2))
        curved_P = product_P > 1e-10 * size_P
        inverse_P = torch.where(curved_P, 1 / torch.where(curved_P, product_P, 1.0), 0.0)
        self._pairs = [*self._pairs[1 - _MEMORY :], (moved_PMK, changed_PMK, inverse_P)]

    def step(self, gradient_PMK: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """The quasi-Newton step of some problems."""
        step_AMK = -gradient_PMK[active]
        shares = []
        for moved_PMK, changed_PMK, inverse_P in reversed(self._pairs):
            share_A = inverse_P[active] * (moved_PMK[active] * step_AMK).sum(dim=(1, 2))
            step_AMK = step_AMK - share_A[:, None, None] * changed_PMK[active]
            shares.append(share_A)
        if self._pairs:
            _, changed_PMK, inverse_P = self._pairs[-1]
            curved_A = inverse_P[active] > 0
            size_A = inverse_P[active] * changed_PMK[active].square().sum(dim=(1, 2))
            step_AMK = step_AMK / torch.where(curved_A, size_A, 1.0)[:, None, None]
        for (moved_PMK, changed_PMK, inverse_P), share_A in zip(self._pairs, reversed(shares), strict=True):
            back_A = inverse_P[active] * (changed_PMK[active] * step_AMK).sum(dim=(1, 2))
            step_AMK = step_AMK + (share_A - back_A)[:, None, None] * moved_PMK[active]
        return step_AMK
