"""What each scenario did to a store, as a table at the end of `make test-faults`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import pytest

from extract.garbage import find_leftovers, remove_leftovers
from extract.store import Store
from extract.verify import verify
from tests.faults.around import Contents, Difference, Objects, compare, read_around, unnamed_attempts


@dataclass(slots=True)
class Scenario:
    """One row of the table."""

    scenario: str
    times: int = 0
    """How often it was done."""
    shards_lost: int = 0
    """Shards that had a receipt and lost it."""
    rows_lost: int = 0
    """Corpus rows in no shard, once the extraction says that it is complete."""
    rows_doubled: int = 0
    """Corpus rows in more than one shard."""
    corrupt_undetected: int = 0
    """Arrays and tables whose values are not those of an undisturbed run, though verify calls the run whole."""
    done_twice: float = 0.0
    """Shards computed beyond the needed ones, for each crash."""
    recovery_s: float = 0.0
    """Longest time from the launch after a fault until the run is complete."""
    note: str = ""

    def add(self, difference: Difference, recovery_s: float = 0.0) -> None:
        """Count what a store shows at the end."""
        self.rows_lost += difference.rows_lost
        self.rows_doubled += difference.rows_doubled
        self.corrupt_undetected += difference.corrupt
        self.recovery_s = max(self.recovery_s, recovery_s)

    @property
    def harmless(self) -> bool:
        """Whether nothing was lost, doubled or corrupted, and no crash cost more than a shard."""
        return not (self.shards_lost or self.rows_lost or self.rows_doubled or self.corrupt_undetected or self.done_twice > 1)


MATRIX: pytest.StashKey[list[Scenario]] = pytest.StashKey()


def table(scenarios: Sequence[Scenario]) -> list[str]:
    """The rows as lines of text."""
    names = [name for name in asdict(scenarios[0]) if name != "note"]
    rows = [[name.replace("_", " ") for name in names] + ["note"]]
    for each in scenarios:
        values = asdict(each)
        rows.append([f"{values[name]:.2f}" if isinstance(values[name], float) else str(values[name]) for name in names])
        rows[-1].append(each.note)
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:]), row[-1]]).rstrip() for row in rows]


def hold_to_account(store: str, objects: Callable[[], Objects], reference: Contents, row: Scenario) -> None:
    """A complete run is whole, equals an undisturbed one around the product, and `gc` leaves only what is named."""
    opened = Store.open(store)
    (run,) = opened.runs()
    assert verify(run).whole
    row.add(compare(read_around(objects()), reference))
    remove_leftovers(opened, find_leftovers(opened, run.run_id), grace_minutes=0)
    assert not unnamed_attempts(objects())
    assert verify(run).whole
    row.add(compare(read_around(objects()), reference))
