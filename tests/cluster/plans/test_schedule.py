"""Fires and refreshes under a clock the test holds, and the real command under signals."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.plans.cron import fires
from cluster.plans.lock import HeldError, state_directory
from cluster.plans.schedule import keep_schedule
from extract.store import Store
from tests.cluster.plans.conftest import AFFECTOME, Workshop
from tests.hub import Hub

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
SPRING = datetime(2027, 3, 27, 22, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 24, 22, tzinfo=UTC)


@dataclass
class HeldClock:
    """A clock that stands still but for waiting and working."""

    present: datetime
    end: datetime
    """When the schedule is asked to end."""
    waits: list[timedelta] = field(default_factory=list)

    def now(self) -> datetime:
        return self.present

    def wait(self, duration: timedelta) -> bool:
        self.waits.append(duration)
        self.present += duration
        return self.present >= self.end


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def write_plan(directory: Path, cron: str, zone: str = "Europe/Berlin") -> Path:
    path = directory / "plan.yaml"
    path.write_text(
        f"store: store\ncorpora: [builtin]\nmodels: [m]\nschedule: {{cron: {json.dumps(cron)}, timezone: {zone}}}\n"
    )
    return path


def keep(
    path: Path, clock: HeldClock, took: Iterator[timedelta] | None = None, said: list[str] | None = None
) -> list[datetime]:
    """Keep a schedule until the clock's end; when each refresh began."""
    began = []

    def refresh() -> bool:
        began.append(clock.present)
        clock.present += next(took) if took else timedelta()
        return True

    keep_schedule(path, clock, refresh, (said if said is not None else []).append)
    return began


def due(cron: str, start: datetime, end: datetime, zone: str = "Europe/Berlin") -> list[datetime]:
    found = (fire.astimezone(UTC) for fire in fires(cron, zone, start))  # a time that comes twice equals none of another zone
    return list(takewhile(lambda fire: fire < end, found))


@pytest.mark.parametrize(
    ("cron", "start", "expected"),
    [
        ("30 2 * * *", SPRING, ["2027-03-28T01:00Z", "2027-03-29T00:30Z"]),  # 2:30 is not there: at 3:00 summer time
        ("30 2 * * *", AUTUMN, ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]),  # 2:30 comes twice: at the first
        ("0 3 * * *", SPRING, ["2027-03-28T01:00Z", "2027-03-29T01:00Z"]),
        ("0 */12 * * *", AUTUMN, ["2026-10-25T11:00Z", "2026-10-25T23:00Z", "2026-10-26T11:00Z"]),
    ],
)
def test_it_fires_on_time_once_a_day_across_a_change_of_clocks(
    tmp_path: Path, cron: str, start: datetime, expected: list[str]
) -> None:
    clock = HeldClock(start, start + 40 * HOUR)
    assert keep(write_plan(tmp_path, cron), clock) == [datetime.fromisoformat(instant) for instant in expected]
    assert max(clock.waits) <= MINUTE


@pytest.mark.parametrize("start", [SPRING, AUTUMN])
def test_an_hourly_plan_fires_each_hour_that_really_passes(tmp_path: Path, start: datetime) -> None:
    began = keep(write_plan(tmp_path, "0 * * * *"), HeldClock(start + MINUTE, start + 6 * HOUR + MINUTE))
    assert began == [start + n * HOUR for n in range(1, 7)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.sampled_from([SPRING, AUTUMN]), st.integers(0, 59))
def test_however_long_refreshes_take_none_overlap_none_is_forgotten_and_none_is_for_nothing(
    tmp_path: Path, minutes: list[int], start: datetime, offset: int
) -> None:
    for path in state_directory().glob("*"):
        path.unlink()
    lengths = [timedelta(minutes=n) for n in minutes] * 20
    clock = HeldClock(start + offset * MINUTE, start + 6 * HOUR)
    owed = due("*/25 1-4 * * *", clock.present, clock.end)
    began = keep(write_plan(tmp_path, "*/25 1-4 * * *"), clock, iter(lengths))
    ended = [begin + length for begin, length in zip(began, lengths, strict=False)]
    assert all(begin >= end for begin, end in zip(began[1:], ended, strict=False))
    busy = list(zip(began, ended, strict=False))
    for fire in owed:
        last_end = max((end for begin, end in busy if begin < fire < end), default=fire)
        assert last_end in began or last_end >= clock.end, fire  # at once, or when the one that was going on has ended
    previous = clock.present - timedelta(days=2)
    for begin in began:
        assert any(previous < fire <= begin for fire in owed)
        previous = begin


def test_what_was_missed_while_nobody_kept_the_schedule_is_caught_up_once(tmp_path: Path) -> None:
    path = write_plan(tmp_path, "0 2 * * *")
    assert keep(path, HeldClock(SPRING, SPRING + HOUR)) == []
    said: list[str] = []
    later = SPRING + timedelta(days=5)
    assert keep(path, HeldClock(later, later + HOUR), said=said) == [later]
    assert any("the refresh of Sun 2027-03-28 03:00 CEST begins, late, once for all that were missed" in line for line in said)
    assert keep(path, HeldClock(later + HOUR, later + 2 * HOUR)) == []


def test_a_first_start_catches_nothing_up(tmp_path: Path) -> None:
    assert keep(write_plan(tmp_path, "* * * * *"), HeldClock(SPRING, SPRING + MINUTE)) == []


def test_a_refresh_that_was_cut_off_is_owed_again(tmp_path: Path) -> None:
    path, clock = write_plan(tmp_path, "0 * * * *"), HeldClock(SPRING + MINUTE, SPRING + 5 * HOUR)
    began = []

    def cut_off() -> bool:
        began.append(clock.present)
        return False

    keep_schedule(path, clock, cut_off, lambda _: None)
    assert began == [SPRING + HOUR]
    again = SPRING + HOUR + 5 * MINUTE
    assert keep(path, HeldClock(again, again + HOUR - 6 * MINUTE)) == [again]


def test_a_clock_that_was_far_ahead_once_does_not_silence_the_schedule(tmp_path: Path) -> None:
    path, wrong = write_plan(tmp_path, "0 * * * *"), SPRING + timedelta(days=4000)
    keep(path, HeldClock(wrong, wrong + HOUR))
    said: list[str] = []
    assert keep(path, HeldClock(SPRING + MINUTE, SPRING + 2 * HOUR), said=said) == [SPRING + HOUR]
    assert "when the clock was wrong" in said[0]


def test_a_clock_set_back_by_a_little_does_not_fire_twice(tmp_path: Path) -> None:
    path, clock = write_plan(tmp_path, "0 * * * *"), HeldClock(SPRING + MINUTE, SPRING + 2 * HOUR + MINUTE)
    assert keep(path, clock, iter([-5 * MINUTE, timedelta()])) == [SPRING + HOUR, SPRING + 2 * HOUR]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"paid_until": 3}', b'{"paid_until": "soon"}'])
def test_what_is_remembered_and_cannot_be_read_is_told(tmp_path: Path, damage: bytes) -> None:
    path = write_plan(tmp_path, "0 * * * *")
    keep(path, HeldClock(SPRING, SPRING))
    (state,) = state_directory().glob("*.paid.json")
    state.write_bytes(damage)
    said: list[str] = []
    assert keep(path, HeldClock(SPRING + 5 * HOUR + MINUTE, SPRING + 6 * HOUR), said=said) == []
    assert "cannot be read" in said[0]


def test_an_edited_plan_counts_and_a_broken_one_is_told_once_and_caught_up_when_it_is_mended(tmp_path: Path) -> None:
    path = write_plan(tmp_path, "0 5 * * *")
    edits: dict[datetime, Callable[[], object]] = {
        SPRING + 10 * MINUTE: lambda: write_plan(tmp_path, "30 * * * *"),
        SPRING + 40 * MINUTE: lambda: path.write_text("store: ["),
        SPRING + 100 * MINUTE: lambda: write_plan(tmp_path, "30 * * * *"),
    }

    class Editing(HeldClock):
        def wait(self, duration: timedelta) -> bool:
            ended = super().wait(duration)
            for instant in [instant for instant in edits if instant <= self.present]:
                edits.pop(instant)()
            return ended

    said: list[str] = []
    began = keep(path, Editing(SPRING, SPRING + 2 * HOUR), said=said)
    assert began == [SPRING + 30 * MINUTE, SPRING + 100 * MINUTE]
    assert sum("is not YAML" in line for line in said) == 1


def test_a_schedule_is_kept_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = write_plan(tmp_path, "0 * * * *")
    refused = []

    def second() -> bool:
        with pytest.raises(HeldError, match=f"plan.yaml is scheduled by process {os.getpid()} on ") as caught:
            keep(path, HeldClock(SPRING, SPRING))
        refused.append(str(caught.value))
        return True

    clock = HeldClock(SPRING + MINUTE, SPRING + HOUR + MINUTE)
    keep_schedule(path, clock, second, lambda _: None)
    assert len(refused) == 1
    assert keep(path, HeldClock(SPRING, SPRING)) == []  # and when the first has ended, by the next


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("store: s\ncorpora: [builtin]\nmodels: [m]\n", "has no schedule; add one such as"), ("a: b", "is no field")],
)
def test_a_plan_that_cannot_be_scheduled_is_refused_at_the_start(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        keep(path, HeldClock(SPRING, SPRING))


# The real command.


def start(workshop: Workshop, plan: Path, hub: Hub | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [AFFECTOME, "schedule", plan], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=workshop.environment(hub)
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_waiting_schedule_well(workshop: Workshop, number: signal.Signals) -> None:
    plan = write_plan(workshop.directory, "0 0 1 1 *")
    with start(workshop, plan) as process:
        assert process.stderr is not None
        assert "next: " in process.stderr.readline()
        second = workshop.affectome("schedule", plan)
        assert second.returncode == 1
        assert f"is scheduled by process {process.pid} on " in second.stderr
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert (process.returncode, said.split(" ", 2)[-1]) == (0, "stopped\n")


@pytest.mark.slow
def test_a_signal_in_the_middle_of_a_refresh_keeps_what_is_done_and_the_next_start_goes_on(
    workshop: Workshop, hub: Hub
) -> None:
    workshop.corpus()
    for number, name in enumerate(("a", "b")):
        hub.publish(f"lab/{name}", workshop.model(name, seed=number))
    plan = workshop.plan(
        "store: store\ncorpora: [texts.jsonl]\nmodels: [lab/a, lab/b]\nschedule: {cron: 0 0 1 1 *, timezone: UTC}\n"
    )
    earlier = datetime(2020, 6, 1, tzinfo=UTC)
    assert keep(plan, HeldClock(earlier, earlier)) == []  # as if it had been kept until then
    asked, answer = threading.Event(), threading.Event()

    def block(path: str) -> None:
        if path.startswith("/lab/b/resolve/"):
            asked.set()
            answer.wait(60)

    hub.before = block
    with start(workshop, plan, hub) as process:
        assert asked.wait(90)  # the first model is done, and the second is being fetched
        process.terminate()
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        said = list(takewhile(lambda line: "stopping the refresh; finished shards are kept" not in line, lines))
        answer.set()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert "the refresh of Fri 2021-01-01 00:00 UTC begins, late, once for all that were missed" in "".join(said)
    assert weights(plan) == ["lab/a"]
    with start(workshop, plan, hub) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("the refresh is done" in line for line in lines)
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert weights(plan) == ["lab/a", "lab/b"]


def weights(plan: Path) -> list[str]:
    finished = [run for run in Store.open(str(plan.parent / "store")).runs() if not run.missing_shards()]
    return sorted(run.manifest.identity.weights.removeprefix("hub:").partition("@")[0] for run in finished)
