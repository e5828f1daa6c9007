"""affectome refresh, affectome schedule."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import AddressOption, CpusOption, GpusOption, JsonOption, WorkersOption
from cluster.console import Row, note, print_rows, stopping_on_sigterm

if TYPE_CHECKING:  # what computes is imported by the commands that compute: it takes seconds to load
    from cluster.execution import Execution
    from cluster.plans.difference import Gap
    from cluster.plans.models import PassedOver
    from cluster.plans.refresh import Outcome
    from cluster.plans.schema import PlanFile

PlanArgument = Annotated[
    Path, typer.Argument(metavar="PLAN", help="The plan, a YAML file (docs/plans.md).", show_default=False)
]


def refresh(
    plan: PlanArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing and do nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for another refresh of the store to end.")] = False,
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    cpus_per_worker: CpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what a store lacks of a plan, do it, and compare what is new with what was there."""
    from cluster.execution import Execution
    from cluster.plans.lock import held, refresh_lock
    from cluster.plans.schema import read_plan

    wanted, execution = read_plan(plan), Execution(workers, address, gpus_per_worker, cpus_per_worker)
    if dry_run:
        _show(plan, wanted, as_json)
        return
    waiting = (lambda holder: note(f"{holder}; waiting for its end")) if wait else None
    with stopping_on_sigterm(), held(refresh_lock(wanted.store), f"{wanted.store} is being refreshed", waiting):
        _carry_out(plan, wanted, execution, as_json)


def _show(plan: Path, wanted: "PlanFile", as_json: bool) -> None:
    from cluster.plans.refresh import look

    outlook = look(wanted)
    rows = [*map(_gap_row, outlook.gaps), *(_left_out_row("to_do", left) for left in outlook.left_out)]
    print_rows(f"{plan} and {wanted.store}", rows, as_json)
    _fail_with([*map(str, outlook.failed), *(_named(gap, gap.problem) for gap in outlook.gaps if gap.problem)])


def _carry_out(plan: Path, wanted: "PlanFile", execution: "Execution", as_json: bool) -> None:
    from cluster.plans.refresh import carry_out, look

    outlook = look(wanted)
    n_open = sum(bool(gap.steps) for gap in outlook.gaps)
    note(f"{n_open:,} of {len(outlook.gaps):,} runs that {plan} wants have something to do")
    outcomes = carry_out(outlook, wanted, execution)
    rows = [*map(_outcome_row, outcomes), *(_left_out_row("done", left) for left in outlook.left_out)]
    print_rows(f"{plan} and {wanted.store}", rows, as_json)
    _fail_with([*map(str, outlook.failed), *(_named(each.gap, each.failure) for each in outcomes if each.failure)])


def schedule(
    plan: PlanArgument,
    workers: WorkersOption = None,
    address: AddressOption = None,
    gpus_per_worker: GpusOption = None,
    cpus_per_worker: CpusOption = None,
) -> None:
    """Refresh by the plan's schedule on this machine, until SIGTERM or Ctrl-C."""
    from cluster.plans.schedule import WallClock, keep_schedule, refresh_in_process, stop_on_signals

    options = {
        "--workers": workers,
        "--address": address,
        "--gpus-per-worker": gpus_per_worker,
        "--cpus-per-worker": cpus_per_worker,
    }
    given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    with stop_on_signals() as stop:
        keep_schedule(plan, WallClock(stop), refresh_in_process(plan, given, stop, _say), _say)
    _say("stopped")


def _gap_row(gap: "Gap") -> Row:
    return {
        **_target_row(gap, gap.run.run_id if gap.run else None),
        "to_do": [str(step) for step in gap.steps],
        "why": gap.reason,
    }


def _outcome_row(outcome: "Outcome") -> Row:
    steps = [] if outcome.failure else [str(step) for step in outcome.gap.steps if step != "compare"]
    return {
        **_target_row(outcome.gap, outcome.run_id),
        "done": steps + (["compare"] if outcome.page else []),
        "why": outcome.failure or outcome.gap.reason,
        "failed": outcome.failure is not None,
        "comparison": outcome.page,
        "seconds": round(outcome.seconds, 1),
    }


def _target_row(gap: "Gap", run_id: str | None) -> Row:
    target = gap.target
    return {
        "model": target.model.title,
        "revision": target.model.revision,
        "corpus": str(target.corpus),
        "template": str(target.template),
        "run": run_id,
    }


def _left_out_row(column: str, left: "PassedOver") -> Row:
    """A row of the same table, as far as it has anything to say; `column` is what says what is done."""
    nothing = dict.fromkeys(("revision", "corpus", "template", "run"))
    return {"model": left.name, **nothing, column: ["leave out"], "why": left.reason}


def _named(gap: "Gap", problem: str) -> str:
    return f"{gap.target.model.name}, {gap.target.corpus}, {gap.target.template}: {problem}"


def _fail_with(problems: Sequence[str]) -> None:
    for problem in problems:
        note(problem)
    if problems:
        raise RuntimeError(f"{len(problems):,} of what the plan wants could not be had, named above; everything else is done")


def _say(text: str) -> None:
    note(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ} {text}")
