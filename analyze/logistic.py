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
_STEPS_A_ROUND = 12
_MOST_ROUNDS = 60
_LEFT_OUT = 0.02  # of what bends a loss, may lie in rows that a round leaves as they are
_WORTH_IT = 0.7  # of the rows, at most, for leaving any out
_MEMORY = 20
_SUFFICIENT = 1e-4
_ROUNDING = 1e-7
_MOST_HALVINGS = 20
_MOST_KEPT_BYTES = 1 << 30
_BLOCK_BYTES = 4 << 20


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

    def take(self, chosen_B: torch.Tensor) -> "_Block":
        return _Block(self.x_BD[chosen_B], self.code_BP[chosen_B], self.weight_BP[chosen_B])


@dataclass(frozen=True, slots=True)
class _Rest:
    """What rows that are left out add to each problem: their loss and its slope where they were left, and from there a line."""

    raw_PDK: torch.Tensor
    bias_PK: torch.Tensor
    loss_P: torch.Tensor
    by_raw_PDK: torch.Tensor
    by_bias_PK: torch.Tensor

    @classmethod
    def nothing(cls, n_problems: int, width: int, n_classes: int, device: torch.device) -> "_Rest":
        shapes = (n_problems, width, n_classes), (n_problems, n_classes), (n_problems,)
        raw, bias, loss = (torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes)
        return cls(raw, bias, loss, raw.clone(), bias.clone())

    def set(self, which: torch.Tensor, *values: torch.Tensor) -> None:
        """The position of some problems, and the loss and slope of their rows there."""
        for mine, value in zip(
            (self.raw_PDK, self.bias_PK, self.loss_P, self.by_raw_PDK, self.by_bias_PK), values, strict=True
        ):
            mine[which] = value

    def added(
        self,
        which: torch.Tensor,
        raw_PDK: torch.Tensor,
        bias_PK: torch.Tensor,
        loss_P: torch.Tensor,
        by_raw_PDK: torch.Tensor,
        by_bias_PK: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss and gradient of the other rows of some problems with theirs added."""
        along_P = (self.by_raw_PDK[which] * (raw_PDK - self.raw_PDK[which])).sum(dim=(1, 2))
        along_P += (self.by_bias_PK[which] * (bias_PK - self.bias_PK[which])).sum(dim=1)
        return (
            loss_P + self.loss_P[which] + along_P,
            by_raw_PDK + self.by_raw_PDK[which],
            by_bias_PK + self.by_bias_PK[which],
        )


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
        self._all: list[_Block] | None = list(self._read()) if fits else None
        self._narrowed: list[_Block] | None = None
        self._rest = _Rest.nothing(len(problems), states.width, self._n_classes, self._device)
        self._whole = (self._rest.loss_P.clone(), self._rest.by_raw_PDK.clone(), self._rest.by_bias_PK.clone())

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
        here = self._pass(raw_PDK, bias_PK, which)
        if self._narrowed is None:
            for whole, own in zip(self._whole, here, strict=True):
                whole[which] = own
        loss_P, by_raw_PDK, by_bias_PK = self._rest.added(which, raw_PDK, bias_PK, *here)
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

    def widen(self) -> None:
        """Go over all rows from now on."""
        self._narrowed = None
        self._rest = _Rest.nothing(len(self._problems), self._states.width, self._n_classes, self._device)

    def narrow(self, v_PMK: torch.Tensor, which: torch.Tensor) -> None:
        """Go over the rows that bend the loss of some problem from now on, where they are few; the rest keep their slope.

        As a fit gets better, ever fewer rows bend its loss: those it is unsure about.

        Args:
            v_PMK: where all rows were evaluated last.
        """
        _, raw_PDK, bias_PK = self._unrounded(v_PMK[which], which)
        bends = [self._bend(block, raw_PDK, bias_PK, which) for block in self._blocks()]
        least_A = _threshold(torch.cat(bends))
        chosen = [(bend_BA >= least_A).any(dim=1) for bend_BA in bends]
        if sum(int(chosen_B.sum()) for chosen_B in chosen) > _WORTH_IT * sum(len(bend_BA) for bend_BA in bends):
            return
        narrowed = [block.take(chosen_B) for block, chosen_B in zip(self._blocks(), chosen, strict=True)]
        self._narrowed = _together(narrowed)
        part = self._pass(raw_PDK, bias_PK, which)
        self._rest.set(which, raw_PDK, bias_PK, *(whole[which] - own for whole, own in zip(self._whole, part, strict=True)))

    def _bend(self, block: _Block, raw_PDK: torch.Tensor, bias_PK: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """What each row adds to the curvature of each problem's loss, (B, P), but for its states."""
        share_BPK = self._scores(block, raw_PDK, bias_PK).softmax(dim=2)
        return (1 - share_BPK.square().sum(dim=2)) * block.weight_BP[:, which]

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
        """Log loss and its gradient by raw weights and bias, over the rows of now."""
        n_problems, width, n_classes = raw_PDK.shape
        loss_P = torch.zeros(n_problems, dtype=torch.float64, device=self._device)
        by_raw_CD = torch.zeros(n_problems * n_classes, width, dtype=torch.float64, device=self._device)
        by_bias_PK = torch.zeros(n_problems, n_classes, dtype=torch.float64, device=self._device)
        for block in self._blocks():
            code_BP1, weight_BP = block.code_BP[:, which].long()[:, :, None], block.weight_BP[:, which]
            log_BPK = self._scores(block, raw_PDK, bias_PK).log_softmax(dim=2)
            loss_P -= (log_BPK.gather(2, code_BP1)[:, :, 0] * weight_BP).sum(dim=0, dtype=torch.float64)
            error_BPK = log_BPK.exp_()
            error_BPK.scatter_add_(2, code_BP1, -torch.ones_like(code_BP1, dtype=torch.float32))
            error_BPK *= weight_BP[:, :, None]
            by_raw_CD += _product(error_BPK.view(len(weight_BP), -1).T, block.x_BD)
            by_bias_PK += error_BPK.sum(dim=0, dtype=torch.float64)
        return loss_P, by_raw_CD.view(n_problems, n_classes, width).transpose(1, 2), by_bias_PK

    def _scores(self, block: _Block, raw_PDK: torch.Tensor, bias_PK: torch.Tensor) -> torch.Tensor:
        """Logits of a block's rows, (B, P, K)."""
        n_problems, width, n_classes = raw_PDK.shape
        weight_DC = raw_PDK.float().permute(1, 0, 2).reshape(width, -1).contiguous()
        return _product(block.x_BD, weight_DC).add_(bias_PK.float().reshape(-1)).view(-1, n_problems, n_classes)

    def _blocks(self) -> Iterable[_Block]:
        return self._narrowed or self._all or self._read()

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


def _threshold(bend_NA: torch.Tensor) -> torch.Tensor:
    """For each problem the bend below which rows make up too little of it to go over them."""
    ascending_NA = bend_NA.sort(dim=0).values
    rising_NA = ascending_NA.cumsum(dim=0, dtype=torch.float64)
    n_left_A = (rising_NA <= _LEFT_OUT * rising_NA[-1]).sum(dim=0)
    return ascending_NA.gather(0, (n_left_A - 1).clamp(min=0)[None])[0]


def _together(blocks: Sequence[_Block]) -> list[_Block]:
    """Small blocks put together to blocks of a size that products are fast on."""
    x_ND, code_NP, weight_NP = (
        torch.cat(parts) for parts in zip(*((block.x_BD, block.code_BP, block.weight_BP) for block in blocks), strict=True)
    )
    n = max(1, _BLOCK_BYTES // (4 * x_ND.shape[1]))
    return [_Block(*parts) for parts in zip(*(torch.split(values, n) for values in (x_ND, code_NP, weight_NP)), strict=True)]


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A matrix product; on a CPU numpy's, which for one tall factor takes half as long as torch's or less."""
    if left.device.type != "cpu":
        return left @ right
    return torch.from_numpy(left.numpy() @ right.numpy())


def _minimise(objective: _Objective) -> torch.Tensor:
    """L-BFGS on every problem side by side (Nocedal & Wright, algorithm 7.5); those that are done drop out of the passes.

    Each round begins with a pass over all rows, which alone decides what is done. What follows, after the first round, goes
    over the rows that still bend a loss; the others stay in it as they were when the round began, with their slope.
    """
    v_PMK = objective.start()
    active, history = torch.arange(len(v_PMK), device=v_PMK.device), _History(v_PMK)
    before_P, may_narrow = torch.full_like(objective.least_loss, torch.inf), True
    for round_number in range(_MOST_ROUNDS):
        objective.widen()
        loss_P, gradient_PMK = torch.zeros_like(objective.least_loss), torch.zeros_like(v_PMK)
        loss_P[active], gradient_PMK[active] = objective.evaluate(v_PMK[active], active)
        active = _not_done(objective, active, loss_P, gradient_PMK)
        if not len(active):
            return v_PMK
        may_narrow = may_narrow and bool((loss_P[active] < before_P[active]).all())  # else rows left out bend too much
        if round_number and may_narrow:
            objective.narrow(v_PMK, active)
        before_P = loss_P.clone()
        _descend(objective, history, v_PMK, loss_P, gradient_PMK, active)
    raise RuntimeError(
        f"logistic regression did not converge in {_MOST_ROUNDS * _STEPS_A_ROUND} steps; use a stronger penalty (smaller C)"
    )


def _not_done(objective: _Objective, active: torch.Tensor, loss_P: torch.Tensor, gradient_PMK: torch.Tensor) -> torch.Tensor:
    gap_A = 0.5 * gradient_PMK[active].square().sum(dim=(1, 2))
    return active[gap_A > _GAP * (loss_P + objective.least_loss)[active]]


def _descend(
    objective: _Objective,
    history: "_History",
    v_PMK: torch.Tensor,
    loss_P: torch.Tensor,
    gradient_PMK: torch.Tensor,
    active: torch.Tensor,
) -> None:
    """Some steps of the active problems, from where the loss and gradient are those given; all are brought forward."""
    for _ in range(_STEPS_A_ROUND):
        step_AMK = history.step(gradient_PMK, active)
        new_v, new_loss, new_gradient = _search(objective, v_PMK, loss_P, gradient_PMK, step_AMK, active)
        history.add(active, new_v - v_PMK[active], new_gradient - gradient_PMK[active])
        v_PMK[active], loss_P[active], gradient_PMK[active] = new_v, new_loss, new_gradient
        active = _not_done(objective, active, loss_P, gradient_PMK)
        if not len(active):
            return


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
