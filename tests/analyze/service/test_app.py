"""What an application has loaded before it answers."""

import subprocess
import sys
from pathlib import Path

from extract.store import Store
from tests.analyze.service.serving import ROOT

_FIRST_REQUESTS = """
import sys, threading, time
from analyze.query import open_store
from analyze.service.app import application
from analyze.service.settings import Settings

def first():
    from transformers import PreTrainedTokenizerBase  # as analyze.prompting does

def failed(args):
    print(args.exc_value)

application(open_store(sys.argv[1]), Settings())
threading.excepthook = failed
threads = [threading.Thread(target=first) for _ in range(20)]
for thread in threads:
    thread.start()
    time.sleep(0.02)
for thread in threads:
    thread.join()
"""


def test_requests_that_come_first_and_at_once_do_not_see_a_library_half_loaded(tmp_path: Path) -> None:
    Store.open(str(tmp_path), create=True)
    command = [sys.executable, "-c", _FIRST_REQUESTS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
