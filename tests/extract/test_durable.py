"""Durable writes, seen by other writers, by readers, and after a kill."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.durable import create, ensure_directory, replace

_ROOT = Path(__file__).resolve().parents[2]
_SIZE = 1 << 18


def _create(path: Path, writer: int) -> bool:
    return create(path, bytes([writer]) * 1000)


@given(data=st.binary(max_size=3000), later=st.binary(max_size=3000))
def test_what_was_written_is_what_is_read(data: bytes, later: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("durable")
    assert create(directory / "object", data)
    assert not create(directory / "object", later)
    assert (directory / "object").read_bytes() == data
    replace(directory / "object", later)
    assert (directory / "object").read_bytes() == later
    assert [path.name for path in directory.iterdir()] == ["object"]


def test_exactly_one_of_eight_threads_creates_an_object(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def race(writer: int, turn: int) -> bool:
        barrier.wait()
        return _create(tmp_path / f"object-{turn}", writer)

    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            won = list(pool.map(race, range(8), [turn] * 8))
            assert won.count(True) == 1
            assert (tmp_path / f"object-{turn}").read_bytes() == bytes([won.index(True)]) * 1000
    assert len(list(tmp_path.iterdir())) == 20


def test_exactly_one_of_eight_processes_creates_an_object(tmp_path: Path) -> None:
    with get_context("spawn").Pool(4) as pool:
        won = pool.starmap(_create, [(tmp_path / "object", writer) for writer in range(8)], chunksize=1)
    assert won.count(True) == 1
    assert (tmp_path / "object").read_bytes() == bytes([won.index(True)]) * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["object"]


def test_a_reader_never_sees_part_of_a_replaced_object(tmp_path: Path) -> None:
    path = tmp_path / "object"
    replace(path, b"0" * _SIZE)
    finished = threading.Event()

    def write() -> None:
        for turn in range(60):
            replace(path, str(turn % 10).encode() * (_SIZE + turn))
        finished.set()

    writer = threading.Thread(target=write)
    writer.start()
    whole = []
    while not finished.is_set():
        data = path.read_bytes()
        whole.append(len(data) >= _SIZE and len(set(data)) == 1)
    writer.join()
    assert whole
    assert all(whole)


def test_a_killed_writer_leaves_a_whole_object(tmp_path: Path) -> None:
    script = f"""
import itertools
from pathlib import Path
from extract.durable import replace
for turn in itertools.count():
    replace(Path({str(tmp_path / "object")!r}), str(turn % 10).encode() * {_SIZE})
    print(turn, flush=True)
"""
    for turns in range(1, 8):
        with subprocess.Popen([sys.executable, "-c", script], cwd=_ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(turns):
                process.stdout.readline()
            process.kill()
        data = (tmp_path / "object").read_bytes()
        assert len(data) == _SIZE
        assert len(set(data)) == 1


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").touch()
    with pytest.raises(OSError, match="taken"):
        replace(tmp_path / "taken", b"data")
    assert create(tmp_path / "taken", b"data") is False
    with pytest.raises(TypeError):
        create(tmp_path / "object", "not bytes")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        create(tmp_path / "missing" / "object", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["inside"]


def test_directories_are_made_with_their_parents_by_any_number_at_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def race(turn: int) -> None:
        barrier.wait()
        ensure_directory(tmp_path / f"{turn}" / "b" / "c")

    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            list(pool.map(race, [turn] * 8))
            assert (tmp_path / f"{turn}" / "b" / "c").is_dir()
    ensure_directory(tmp_path)


def test_a_file_in_the_way_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        ensure_directory(tmp_path / "file" / "inside")
