"""A lock is held by one process at a time, says by whom, and ends with its holder however that ends."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.plans.lock import HeldError, held, refresh_lock, state_directory

HOLDER = """
import sys, time
from pathlib import Path
from cluster.plans.lock import held
with held(Path(sys.argv[1]), "something is done"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_who_holds_a_lock_is_told_and_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):  # asking does not change what it says
            with pytest.raises(HeldError, match=f"something is done by process {holder.pid} on "), held(path, "mine"):
                pass
        holder.send_signal(signal.SIGKILL)
    with held(path, "mine"):
        assert str(os.getpid()) in path.read_text()


def test_who_waits_is_told_once_and_gets_the_lock(tmp_path: Path) -> None:
    path, taken = tmp_path / "lock", threading.Event()
    told: list[str] = []

    def second() -> None:
        with held(path, "second", told.append):
            taken.set()

    with held(path, "first"):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not taken.wait(2.5)
    waiting.join(30)
    assert taken.is_set()
    assert len(told) == 1
    assert told[0].startswith("first by process")


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "lock", "failing"):
        raise KeyError
    with held(tmp_path / "lock", "again"):
        pass


def test_one_store_has_one_lock_by_whatever_path_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emotion").mkdir()
    (tmp_path / "link").symlink_to("emotion")
    names = ("emotion", "link", f"file://{tmp_path}/emotion", f"{tmp_path}/emotion/", f"{tmp_path}/plans/../emotion")
    assert len({refresh_lock(name) for name in names}) == 1
    assert refresh_lock("emotion") != refresh_lock("other")


def test_a_place_that_cannot_be_made_is_a_sentence_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert state_directory() == tmp_path / "state" / "affectome" / "schedules"
    with pytest.raises(ValueError, match="name a place for it with XDG_STATE_HOME"):
        refresh_lock("emotion")
