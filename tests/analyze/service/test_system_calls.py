"""What a service does to its machine while it is attacked, as the kernel sees it: Python, DuckDB and Arrow alike."""

import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.analyze.service.hostile import ATTACKS, CONDITIONS, INJECTIONS, STATEMENTS
from tests.analyze.service.serving import ROOT, serving
from tests.analyze.service.stores import Planted, files

_READ = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/lib", "/usr/lib", "/usr/local/lib", "/etc/ld.so.cache")
_ZONES = ("/usr/share/zoneinfo", "/etc/localtime", "/etc/timezone")
_IMPORTS = re.compile(  # what libraries do as a new process of a query imports them; none of it depends on what is asked
    r'"/usr/share/locale/locale.alias"|"/etc/ssl/openssl.cnf"'  # C library, OpenSSL
    r'|"[^"]*/\.(config|cache)/matplotlib[^"]*"(, O_RDONLY|, 0777\) = -1 EEXIST)'
    r'|"/dev/shm/sem\.\w+"|"/dev/shm/sem\.joblib-[^"]*"'  # whether there are semaphores
    r'|"/tmp/[a-z0-9_]{8}"'  # where temporary files may be; removed at once
)
_OPENS = re.compile(r'(?:open|openat|openat2|creat)\((?:AT_FDCWD[^,]*, )?"([^"]*)"(?:, ([A-Z_|0-9a-z{}= ]+))?')
_CHANGES = re.compile(r"\b(mkdir|rmdir|unlink|rename|link|symlink|truncate|chmod|chown|utime|mknod|mount|execve)\w*\(")
_CONNECTS = re.compile(r"\b(connect|sendto)\(\d+[^,]*, .*sa_family=(AF_INET6?)")
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")


def broken(trace: str, store: str) -> Iterator[str]:
    """The calls that a reader of a store has no business with; starting a process of its own is its business."""
    code = (sys.prefix, sys.base_prefix, sys.exec_prefix, str(ROOT))
    allowed = (store, *code, *_READ, *_ZONES)
    for line in trace.splitlines():
        if _IMPORTS.search(line):
            continue
        opened = _OPENS.search(line)
        if opened:
            path, flags = opened[1], opened[2] or ""
            writes = _WRITES.search(flags) and path not in ("/dev/null", "/dev/tty")
            there = path.startswith("/") and "ENOENT" not in line and "O_PATH" not in flags
            if writes or (there and not path.startswith(allowed)):
                yield line
        elif _CONNECTS.search(line) or (_CHANGES.search(line) and sys.executable not in line):
            yield line


def _settled(trace: Path) -> int:
    """Size of a trace once the service has loaded what it loads beside its first requests; matplotlib keeps fonts then."""
    before = -1
    while before != (size := trace.stat().st_size):
        before = size
        time.sleep(5)
    return size


@pytest.mark.slow
def test_no_file_outside_the_store_is_opened_nothing_is_written_and_nobody_is_called(planted: Planted, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace on PATH; this test wants apt install strace")
    trace, before = tmp_path / "trace.txt", list(files(planted.location))
    under = ["strace", "-f", "-qq", "-s", "4096", "-e", "trace=%file,%network", "-o", str(trace)]
    home = {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    run = f"/api/runs/{planted.whole.run_id}"
    options = ("--timeout", "2", "--memory", "256MB", "--no-texts")
    with serving(tmp_path, planted.location, *options, under=under, environment=home) as service:
        with httpx.Client(base_url=service.url, timeout=120) as client:
            client.get("/api/runs").raise_for_status()
            at_start = _settled(trace)
            for sql in (*STATEMENTS, *ATTACKS):
                assert client.post("/api/sql", json={"sql": sql}).status_code in (200, 400, 413), sql
            for where in (*CONDITIONS, *INJECTIONS):
                for what in ("utterances", "projection?site=resid.last&layer=1", "hidden?site=resid.last&layer=1"):
                    path, _, asked = what.partition("?")
                    query = {**dict(part.split("=") for part in asked.split("&") if part), "where": where[:20_000]}
                    assert client.get(f"{run}/{path}", params=query).status_code in (200, 400, 413), where
            for path in ("/", "/page/page.css", "/page/..%2f..%2faccess.py", "/page/%2e%2e/app.py", "/openapi.json"):
                assert client.get(path).status_code in (200, 404)
            for what in ("scores", "persistence", "explain?site=resid.last&layer=1", ""):
                client.get(f"{run}/{what}" if what else run).raise_for_status()
            near = {"site": "resid.last", "layer": 1, "row": 3}
            client.post(f"{run}/neighbours", json=near).raise_for_status()
            client.post(f"{run}/along", json={"site": "resid.last", "layer": 1, "label": "joy"}).raise_for_status()
        with trace.open() as file:
            file.seek(at_start)
            since = file.read()
    assert since.count("openat(") > 100
    assert list(broken(since, planted.location)) == []
    assert list(files(planted.location)) == before


def test_what_would_break_the_promise_is_seen() -> None:
    for call in (
        '1 openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 7',
        '1 openat(AT_FDCWD, "/store/runs/x", O_WRONLY|O_CREAT, 0666) = 7',
        '1 open("/tmp/x", O_RDWR) = 7',
        '1 unlink("/store/affectome.json") = 0',
        '1 connect(7, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("192.0.2.1")}, 16) = 0',
        '1 execve("/bin/sh", ["sh"], 0x7f) = 0',
    ):
        assert list(broken(call, "/store")) == [call]
    for call in (
        '1 openat(AT_FDCWD, "/store/runs/x/run.json", O_RDONLY|O_CLOEXEC) = 7',
        '1 openat(AT_FDCWD, "/etc/nothing", O_RDONLY) = -1 ENOENT (No such file or directory)',
        '1 accept4(5, {sa_family=AF_INET, sin_port=htons(50000), sin_addr=inet_addr("127.0.0.1")}, [16], SOCK_CLOEXEC) = 9',
    ):
        assert list(broken(call, "/store")) == []
