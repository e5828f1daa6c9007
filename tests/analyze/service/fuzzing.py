"""Hostile requests to a service, made from its own OpenAPI, and what must hold of every answer.

schemathesis makes requests of the right form and of wrong ones. Most of them fail at the first check, so many are deepened
here: run, site and layer are ones that exist, and what is SQL is a real statement, an attack, or a mutation of one of the two.
"""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from analyze.query import open_store
from analyze.service.answers import ARROW
from analyze.service.app import application
from analyze.service.settings import Settings
from tests.analyze.service.hostile import ATTACKS, CONDITIONS, INJECTIONS, SITES, STATEMENTS, TEXT, Raw, raw, sql
from tests.analyze.service.stores import Planted, files, plant

HOST = {"Host": "127.0.0.1"}
_AT_ONCE = 500
_EXAMPLE_CHARACTERS = 2000
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@dataclass(slots=True)
class Watch:
    """What Python opened, wrote or started while requests were answered, outside of what is allowed."""

    allowed: tuple[str, ...]
    """Beginnings of paths that may be read."""
    broken: list[str] = field(default_factory=list)
    """What else was touched."""
    on: bool = False
    """Whether requests are being answered."""

    @classmethod
    def of_this_process(cls) -> "Watch":
        """Watch this process from now on; there is no way back, but it does nothing while it is not on."""
        code = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(__file__).parents[3])}
        watch = cls((*code, "/proc/", "/sys/", "/dev/urandom", "/usr/share/zoneinfo", "/etc/localtime"))
        sys.addaudithook(watch)
        return watch

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            writes = bool(flags & 3) if isinstance(flags, int) else any(letter in str(mode) for letter in "wax+")
            if not isinstance(path, int) and (writes or not self._may_read(path)):
                self.broken.append(f"{event} {path!r} {mode!r} {flags!r}")
        elif event in ("os.listdir", "os.scandir"):
            if not self._may_read(args[0]) and args[0] not in sys.path:  # whoever imports looks there
                self.broken.append(f"{event} {args!r}")
        elif event.startswith(_FORBIDDEN_EVENTS):
            self.broken.append(f"{event} {args!r}"[:300])

    def _may_read(self, path: object) -> bool:
        return isinstance(path, int) or str(path).startswith(self.allowed)


_FORBIDDEN_EVENTS = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.chown"),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.putenv", "os.utime", "subprocess.Popen", "shutil."),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "ctypes.dlopen", "tempfile."),
)


@dataclass(slots=True)
class Fuzz:
    """Sends requests to a service, and holds every answer against what was promised."""

    app: FastAPI
    planted: Planted
    watch: Watch
    statuses: Counter[int] = field(default_factory=Counter)
    """How many requests got which status."""
    slowest_s: float = 0.0
    """Longest that one took."""

    def requests(self) -> st.SearchStrategy[Case[Any] | Raw]:
        """Everything that is sent."""
        schema = schemathesis.openapi.from_asgi("/openapi.json", self.app, headers=HOST)
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        plain = st.one_of([operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes])
        deep = st.one_of([operation.as_strategy() for operation in operations]).flatmap(self._deepened)
        return st.one_of(plain, deep, deep, deep, raw())

    def _deepened(self, case: Case[Any]) -> st.SearchStrategy[Case[Any]]:
        """The same request of things that exist, with SQL that is worth parsing."""

        @st.composite
        def make(draw: st.DrawFn) -> Case[Any]:
            planted = self.planted
            if case.path_parameters and "run" in case.path_parameters:
                ids = [run.run_id for run in (planted.whole, planted.whole, planted.tokens, planted.partial)]
                case.path_parameters["run"] = draw(st.sampled_from([*ids, *(one[:3] for one in ids), "0", "%2e%2e", "é"]))
            query = case.query
            if query is not None:
                if "site" in query:
                    query["site"] = draw(st.sampled_from(("resid.last",) * 6 + SITES))
                if "layer" in query:
                    layer = st.sampled_from((0, 1, 1, 2, -1, 2**63))
                    query["layer"] = draw(st.one_of(layer, st.lists(layer, min_size=1, max_size=3)))
                if draw(st.booleans()):
                    query["where"] = (
                        draw(sql(CONDITIONS + INJECTIONS)).encode(errors="replace").decode()
                    )  # no URL holds half a pair
                    query.pop("rows", None)
                if "colour" in query or draw(st.booleans()):
                    query["colour"] = draw(st.sampled_from(("label", "label", "row", "marks", "odd", "text", "nothing")))
                for name in ("offset", "limit"):
                    if name in query:
                        query[name] = draw(st.sampled_from((0, 1, 5, 10**6, 2**63 - 1, 2**63, -1, "1e3", "")))
            if isinstance(case.body, dict):
                self._deepen_body(draw, case.operation.path, case.body)
            return case

        return make()

    def _deepen_body(self, draw: st.DrawFn, path: str, body: dict[str, Any]) -> None:
        if path == "/api/sql":
            body["sql"] = draw(sql(STATEMENTS + ATTACKS))
            return
        body["site"] = draw(st.sampled_from(("resid.last",) * 6 + SITES))
        body["layer"] = draw(st.sampled_from((0, 1, 1, 2, 2**63)))
        body["k"] = draw(st.sampled_from((1, 3, 40, 1000, 10**9)))
        condition = sql(CONDITIONS + INJECTIONS)
        among = "among" if path.endswith("/along") else "where"
        if among in body or draw(st.integers(0, 3)) == 0:
            body[among] = draw(condition)
        if path.endswith("/along"):
            self._deepen_direction(draw, condition, body)
            return
        given = draw(st.sampled_from(("row", "row", "vector", "text")))
        for name in ("row", "vector", "text"):
            body.pop(name, None)
        numbers = st.floats(allow_nan=False, allow_infinity=False)
        width = draw(st.sampled_from((0, 1, 3, 3, 3, 4)))
        of = {"row": st.sampled_from((0, 39, 40, 2**63 - 1)), "vector": st.lists(numbers, min_size=width, max_size=width)}
        body[given] = draw(of.get(given, TEXT))

    def _deepen_direction(self, draw: st.DrawFn, condition: st.SearchStrategy[str], body: dict[str, Any]) -> None:
        if draw(st.booleans()):
            body.update(label=None, where=draw(condition), other=draw(condition))
            return
        body.pop("where", None)
        body.pop("other", None)
        body["label"] = draw(st.sampled_from(("joy", "fear", "nobody")))
        for name, values in (
            ("column", ("label", "label", "n_tokens", "marks", "nothing")),
            ("kind", (None, "linear", "mlp", "cubic")),
            ("balance", (None, "none", "weights", "fair")),
            ("strength", (None, None, 0.5, 0, -1, 1e308)),
            ("solver", (None, "affectome", "abacus")),
        ):
            if name in body or draw(st.integers(0, 3)) == 0:
                body[name] = draw(st.sampled_from(values))

    def send(self, request: Case[Any] | Raw) -> None:
        """Send one and check its answer.

        Raises:
            AssertionError: the answer breaks a promise; or one of schemathesis' failures.
        """
        began = time.perf_counter()
        self.watch.on = True
        try:
            if isinstance(request, Case):
                answer: Any = request.call(headers=HOST, timeout=120)
            else:
                with TestClient(self.app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
                    answer = client.request(
                        request.method, request.path, headers=HOST | request.headers, content=request.content
                    )
        finally:
            self.watch.on = False
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
        self.statuses[answer.status_code] += 1
        assert answer.status_code < 500, (answer.status_code, answer.content[:500])
        kind = answer.headers.get("content-type", "")
        if answer.request.method != "HEAD":
            check_answer(answer.status_code, kind if isinstance(kind, str) else kind[0], answer.content)
        if isinstance(request, Case):
            refused = (
                [negative_data_rejection] if answer.status_code == 413 else []
            )  # as too large, before its form is looked at
            request.validate_response(answer, checks=[check for check in _CHECKS if check not in refused])
        assert not self.watch.broken, self.watch.broken


def check_answer(status: int, kind: str, content: bytes) -> None:
    """An answer is JSON or a whole Arrow stream, and a refusal is one sentence.

    Raises:
        AssertionError: it is not.
    """
    if kind == ARROW:
        with pa.ipc.open_stream(content) as reader:
            reader.read_all().validate(full=True)
        return
    if not kind.startswith("application/json"):
        assert kind.startswith("text/"), kind
        return
    value = json.loads(content.decode(), parse_constant=_no_constant)
    if status >= 400:
        assert list(value) == ["error"], value
        assert isinstance(value["error"], str), value
        assert value["error"], value
        assert "\n" not in value["error"], value
        assert "Traceback" not in value["error"], value


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@dataclass(slots=True)
class Report:
    """What came of it."""

    n_inputs: int = 0
    """Requests sent."""
    seconds: float = 0.0
    """Time it took."""
    statuses: dict[str, int] = field(default_factory=dict)
    """How many requests got which status."""
    slowest_s: float = 0.0
    """Longest that one took."""
    n_bytes_before: int = 0
    """Memory of this process after the first thousand."""
    n_bytes_after: int = 0
    """And after the last."""
    found: dict[str, int] = field(default_factory=dict)
    """What broke a promise, and how often."""
    examples: dict[str, str] = field(default_factory=dict)
    """A request for each."""


def fuzz(directory: Path, watch: Watch, n_inputs: int, minutes: float, first_seed: int = 0) -> Report:
    """Send requests until there are enough or the time is over.

    Args:
        directory: an empty one, for the store.
        watch: on this process; what it allows is added to here.
    """
    planted = plant(directory)
    watch.allowed += (planted.location,)
    app = application(open_store(planted.location), Settings(timeout_s=1.0, memory="256MB", texts=False))
    sender, report, before = Fuzz(app, planted, watch), Report(), list(files(planted.location))
    requests, found = sender.requests(), Counter[str]()
    began = time.monotonic()

    def over() -> bool:
        return report.n_inputs >= n_inputs or time.monotonic() - began >= 60 * minutes

    def send(request: Case[Any] | Raw) -> None:
        if over():
            return
        report.n_inputs += 1
        try:
            sender.send(request)
        except (Exception, BaseExceptionGroup) as error:  # schemathesis groups its failures; each is told at the end
            errors = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
            name = " ".join(f"{type(errors[0]).__name__}: {errors[0]}".split())[:200]
            found[name] += 1
            report.examples.setdefault(name, _said(request))
            watch.broken.clear()
        if report.n_inputs == min(1000, n_inputs // 2):
            report.n_bytes_before = _memory()

    while not over():
        first_seed += 1
        quick = settings(
            max_examples=_AT_ONCE,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        quick(seed(first_seed)(given(requests)(send)))()
    app.state.queries.close()
    if list(files(planted.location)) != before:
        found["the store was changed"] += 1
    report.seconds, report.slowest_s, report.n_bytes_after = time.monotonic() - began, sender.slowest_s, _memory()
    report.statuses = {str(status): number for status, number in sorted(sender.statuses.items())}
    report.found = dict(found)
    return report


def _said(request: Case[Any] | Raw) -> str:
    if isinstance(request, Raw):
        return repr(request)[:_EXAMPLE_CHARACTERS]
    asked = f"{request.method} {request.operation.path} {request.path_parameters} {request.query} {request.body!r}"
    return asked.encode(errors="backslashreplace").decode()[:_EXAMPLE_CHARACTERS]


def _memory() -> int:
    """Bytes of this process in memory."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
