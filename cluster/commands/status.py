"""affectome status."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cluster.commands.options import JsonOption, RunsArgument, StoreArgument
from cluster.console import Row, duration, fail_with, print_json, print_rows

if TYPE_CHECKING:
    from cluster.status import RunStatus


def status(store: StoreArgument, run: RunsArgument = None, as_json: JsonOption = False) -> None:
    """Say how far runs are, who is at work on them and what was given up; from the store alone, on any machine."""
    from cluster.status import run_status
    from extract.store import Store

    opened = Store.open(store)
    ids = opened.run_ids() if run is None else [opened.run_id(run)]
    found, problems = [], []
    for run_id in ids:
        try:
            found.append(run_status(opened.run(run_id)))
        except ValueError as error:  # one damaged run must not hide the others
            problems.append(f"run {run_id}: {error}")
    if as_json:
        print_json([_json(each) for each in found])
    else:
        print_rows(f"runs in {store}", [_row(each) for each in found], as_json=False)
        for each in found:
            _print_launches(each)
    fail_with(problems, f"in {store}, named above")


def _row(status: "RunStatus") -> Row:
    return {
        "run": status.run_id,
        "state": status.state,
        "shards": f"{status.n_shards_done:,} of {status.n_shards:,}",
        "rows": f"{status.n_rows_done:,} of {status.n_rows:,}",
        "rows_per_second": status.rows_per_second,
        "left": None if status.seconds_left is None else duration(status.seconds_left),
        "given_up": len(status.quarantined),
        "bytes": status.n_bytes,
        "time_of_all_workers": ", ".join(f"{name} {duration(seconds)}" for name, seconds in status.stages) or None,
    }


def _print_launches(status: "RunStatus") -> None:
    for found in status.launches:
        said = found.announcement
        state = "at work" if found.alive else "died" if said.state == "working" else said.state
        title = f"run {status.run_id}: {said.who}: {state}, last heard of {duration(found.seconds)} ago"
        rows: list[Row] = [
            {
                "worker": worker.name,
                "state": worker.state,
                "since": worker.since,
                "shards_now": ", ".join(map(str, worker.shards)) or None,
                "shards_done": worker.n_shards,
                "rows_done": worker.n_rows,
                "host": worker.host or None,
                "device": worker.device or None,
            }
            for worker in said.workers
        ]
        if rows:
            print_rows(title, rows, as_json=False)
        else:
            typer.echo(title)
        if said.retries:
            typer.echo("  repeated: " + ", ".join(f"{count} {reason}" for reason, count in sorted(said.retries.items())))
    for shard in status.quarantined:
        typer.echo(f"run {status.run_id}: shard {shard.shard} was given up after {shard.attempts} attempts: {shard.reason}")


def _json(status: "RunStatus") -> object:
    return asdict(status) | {
        "stages": dict(status.stages),
        "launches": [
            asdict(found.announcement) | {"seconds": found.seconds, "alive": found.alive} for found in status.launches
        ],
    }
