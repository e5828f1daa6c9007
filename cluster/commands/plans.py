"""affectome refresh, affectome schedule."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import AddressOption, CpusOption, GpusOption, JsonOption, WorkersOption
from cluster.console import Row, note, print_rows, stopping_on_sigterm

if TYPE_CHECKING:  # what computes is imported by the commands that compute: it takes seconds to load
    from cluster.plans.difference import Gap
    from cluster.plans.models import PassedOver
    from cluster.plans.refresh import Outcome

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
    from cluster.plans.lock import held, state_file
    from cluster.plans.refresh import carry_out, look, store_identity
    from cluster.plans.schema import read_plan

    wanted, execution = read_plan(plan), Execution(workers, address, gpus_per_worker, cpus_per_worker)
    title = f"{plan} and {wanted.store}"
    if dry_run:
        outlook = look(wanted)
        print_rows(title, [*map(_gap_row, outlook.gaps), *map(_left_out_row, outlook.left_out)], as_json)
        unable = [_named(gap, gap.problem) for gap in outlook.gaps if gap.problem is not None]
        _fail_with([*map(str, outlook.failed), *unable])
        return
    store = store_identity(wanted)
    waiting = (lambda holder: note(f"{holder}; waiting for its end")) if wait else None
    with stopping_on_sigterm(), held(state_file(store, "refresh.lock"), f"{store} is being refreshed", waiting):
        outlook = look(wanted)
        n_open = sum(bool(gap.steps) for gap in outlook.gaps)
        note(f"{n_open:,} of {len(outlook.gaps):,} runs that {plan} wants have something to do")
        outcomes = carry_out(outlook, wanted, execution)
    print_rows(title, [*map(_outcome_row, outcomes), *map(_left_out_row, outlook.left_out)], as_json)
    unable = [_named(outcome.gap, outcome.failure) for outcome in outcomes if outcome.failure is not None]
    _fail_with([*map(str, outlook.failed), *unable])


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
        "model": gap.target.model.title,
        "revision": gap.target.model.revision,
        "corpus": str(gap.target.corpus),
        "template": str(gap.target.template),
        "run": gap.run.run_id if gap.run else None,
        "to_do": [str(step) for step in gap.steps],
        "why": gap.reason,
    }


def _outcome_row(outcome: "Outcome") -> Row:
    gap = outcome.gap
    done = [] if outcome.failure else [str(step) for step in gap.steps if step != "compare"]
    return {
        **_gap_row(gap),
        "run": outcome.run_id,
        "done": done + (["compare"] if outcome.page else []),
        "failed": outcome.failure is not None,
        "comparison": outcome.page,
        "seconds": round(outcome.seconds, 1),
    }


def _left_out_row(left: "PassedOver") -> Row:
    return {
        "model": left.name,
        "revision": None,
        "corpus": None,
        "template": None,
        "run": None,
        "to_do": ["leave out"],
        "why": left.reason,
    }


def _named(gap: "Gap", problem: str | None) -> str:
    return f"{gap.target.model.name}, {gap.target.corpus}, {gap.target.template}: {problem}"


def _fail_with(problems: Sequence[str]) -> None:
    for problem in problems:
        note(problem)
    if problems:
        raise RuntimeError(f"{len(problems):,} of what the plan wants could not be had, named above; everything else is done")


def _say(text: str) -> None:
    note(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ} {text}")
