"""A query that takes too much, or that ends the process it runs in, is refused, and the next one is answered."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from analyze.service.limits import BusyError, OverLimitError
from analyze.service.queries import Queries
from analyze.service.settings import Settings
from analyze.service.worker import memory_bytes
from tests.analyze.service.stores import Planted


@pytest.fixture
def queries(planted: Planted) -> Iterator[Queries]:
    found = Queries(planted.location, Settings(timeout_s=0.5, memory="256MB", queries_at_once=1, wait_s=0.2))
    yield found
    found.close()


def test_what_the_engine_neither_counts_nor_interrupts_is_ended(queries: Queries, planted: Planted) -> None:
    run_id, joyful = planted.whole.run_id, planted.whole.utterances("label = 'joy'")["row"].to_pylist()
    assert queries.matching(run_id, "label = 'joy'").tolist() == joyful
    with pytest.raises(OverLimitError, match="more memory than 256MB"):
        queries.matching(run_id, "length(repeat(text, 100000000)) > 1")
    assert queries.matching(run_id, "label = 'joy'").tolist() == joyful
    with pytest.raises(OverLimitError, match=r"longer than 0\.5 seconds"):
        queries.first_rows("SELECT count(*) FROM range(100000000000) a, range(1000) b", 1, 1000)
    assert queries.first_rows("SELECT 1 AS one", 1, 1000)[0].to_pylist() == [{"one": 1}]


def test_a_process_that_dies_under_a_query_is_told_and_replaced(queries: Queries) -> None:
    others = set(multiprocessing.active_children())
    queries.first_rows("SELECT 1", 1, 1000)
    failed: list[Exception] = []

    def ask() -> None:
        try:
            queries.first_rows("SELECT count(*) FROM range(100000000000) a, range(1000) b", 1, 1000)
        except OverLimitError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    (process,) = set(multiprocessing.active_children()) - others
    with pytest.raises(BusyError, match="ask again"):
        queries.first_rows("SELECT 1", 1, 1000)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    thread.join()
    assert len(failed) == 1
    assert queries.first_rows("SELECT 2 AS two", 1, 1000)[0].to_pylist() == [{"two": 2}]


def test_rows_stop_at_the_limit_and_bytes_are_bounded(queries: Queries) -> None:
    table, more = queries.first_rows("FROM range(100000)", 9000, 1 << 20)
    assert (table["range"].to_pylist(), more) == (list(range(9000)), True)
    table, more = queries.first_rows("FROM range(9000)", 9000, 1 << 20)
    assert (table.num_rows, more) == (9000, False)
    assert queries.first_rows("FROM range(9000)", 0, 1 << 20)[1]
    with pytest.raises(OverLimitError, match="at most 1,000 are given"):
        queries.first_rows("FROM range(9000)", 9000, 1000)


def test_a_ctrl_c_of_the_terminal_does_not_end_a_query(queries: Queries, planted: Planted) -> None:
    others = set(multiprocessing.active_children())
    queries.first_rows("SELECT 1", 1, 1000)
    (process,) = set(multiprocessing.active_children()) - others
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert queries.matching(planted.whole.run_id, "false").dtype == np.int64
    assert process.is_alive()


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("1GB", 10**9), ("512 MiB", 512 << 20), ("1.5kb", 1500), ("7", 7), ("2TiB", 2 << 40)]
)
def test_amounts_of_memory_are_read(text: str, n_bytes: int) -> None:
    assert memory_bytes(text) == n_bytes
    for wrong in ("", "plenty", "-1GB", "80%", "1 GBB", "é"):
        with pytest.raises(ValueError, match="no amount of memory"):
            memory_bytes(wrong)
