"""A real Chromium that looks at a real server, and whatever it complains of."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

from analyze.query import Store
from analyze.service.app import application
from analyze.service.settings import Settings

_S_TO_START = 30.0
_MS_TO_WAIT = 20_000  # on a machine that others use too
_REFUSED = "Failed to load resource"  # what the browser itself notes of an answer that is none


@contextmanager
def browser() -> Iterator[Browser]:
    """The Chromium of this machine, without a window."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium here; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def served(store: Store, token: str | None = None) -> Iterator["Served"]:
    """A server of a store at a free port of this machine; it ends with the context, if nobody ended it before."""
    app = application(store, Settings(token=token))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        running = Served(f"http://127.0.0.1:{listening.getsockname()[1]}/", server, thread)
        try:
            yield running
        finally:
            running.stop()
            app.state.queries.close()


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    url: str
    """Where."""
    _server: uvicorn.Server
    _thread: threading.Thread

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join(_S_TO_START)
        assert not self._thread.is_alive(), "the server did not end"


@dataclass(frozen=True, slots=True)
class Visit:
    """A page, and what a reader of its console would see."""

    page: Page
    """The page."""
    problems: list[str] = field(default_factory=list)
    """Errors of scripts and of the content security policy, and requests that went elsewhere."""
    refused: list[str] = field(default_factory=list)
    """What the browser noted of requests that were not answered."""


@contextmanager
def visit(chromium: Browser, url: str, fragment: str = "") -> Iterator[Visit]:
    """Open a page in a context of its own, whose requests elsewhere are cut off; it must not have made any, nor complain.

    Args:
        fragment: what stands behind the address, from `#` on.
    """
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(_MS_TO_WAIT)
    expect.set_options(_MS_TO_WAIT)
    here = Visit(context.new_page())

    def at_home_only(route: Route) -> None:
        if route.request.url.startswith(url):
            route.continue_()
        else:
            here.problems.append(f"asked {route.request.url}")
            route.abort()

    def noted(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            (here.refused if message.text.startswith(_REFUSED) else here.problems).append(message.text)

    context.route("**/*", at_home_only)
    here.page.on("console", noted)
    here.page.on("pageerror", lambda error: here.problems.append(str(error)))
    try:
        here.page.goto(url + fragment)
        yield here
    finally:
        context.close()
    assert here.problems == []
