"""Whatever is asked of a service, it answers well, opens nothing but its store, and changes nothing."""

from pathlib import Path

import pytest

from tests.analyze.service.fuzzing import Watch, fuzz


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch.of_this_process()


@pytest.mark.parametrize(
    ("n_inputs", "minutes"), [(200, 0.25), pytest.param(10_000, 5, marks=pytest.mark.slow)], ids=["some", "many"]
)
@pytest.mark.filterwarnings("ignore")  # of those who make the requests
def test_hostile_requests_are_answered_and_leave_the_store_and_the_machine_alone(
    watch: Watch, tmp_path: Path, n_inputs: int, minutes: float
) -> None:
    report = fuzz(tmp_path, watch, n_inputs, minutes)
    assert report.found == {}, report.examples
    assert report.n_inputs > 50
    assert {"200", "400", "404", "422"} <= report.statuses.keys()
    assert report.n_bytes_after - report.n_bytes_before < 512 << 20
