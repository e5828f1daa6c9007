"""affectome serve: a store over HTTP, with its page."""

import contextlib
import errno
import signal
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.options import StoreArgument
from cluster.console import note

if TYPE_CHECKING:  # it takes seconds to load
    from fastapi import FastAPI

DEFAULT_PORT = 8765
DEFAULT_TIMEOUT_S = 30.0  # analyze.service.settings.Settings, as the next one
DEFAULT_MEMORY = "1GB"
_TOKEN = "AFFECTOME_TOKEN"  # noqa: S105 - the name of a variable
_S_TO_END = 3


def serve(
    store: StoreArgument,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; any but loopback wants a token of every request.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 takes a free one.")
    ] = DEFAULT_PORT,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar=_TOKEN,
            show_envvar=True,
            show_default=False,
            help="What every request must show; better given in the environment, where other users do not see it.",
        ),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts/--no-texts", help="Whether new texts may be sent through a run's model, which loads it.")
    ] = True,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds that SQL may take.")] = DEFAULT_TIMEOUT_S,
    memory: Annotated[str, typer.Option("--memory", help="Memory that SQL may take.")] = DEFAULT_MEMORY,
) -> None:
    """Serve a store over HTTP, to programs and to a browser; nothing can be written through it."""
    from analyze.query import open_store
    from analyze.service.access import checked_token, is_loopback, new_token
    from analyze.service.app import application
    from analyze.service.settings import Settings

    opened = open_store(store)
    asked = None if token is None else checked_token(token)
    if asked is None and not is_loopback(host):
        asked = new_token()
    with contextlib.closing(_listening(host, port)) as listening:
        app = application(opened, Settings(token=asked, texts=texts, timeout_s=timeout, memory=memory))
        _load()
        typer.echo(f"serving {opened.location} at {_url(host, listening)} until Ctrl-C")
        if asked is not None and token is None:
            note(f"every request must show this token, which is another one each time: {asked}")
        _answer(app, listening)


def _load() -> None:
    """Load what takes seconds before the service says that it is there, so that its first page is as fast as any."""
    import analyze.directions
    import analyze.report.tables
    import analyze.results  # noqa: F401


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ValueError: the host is not this machine's, or the port is taken or not for everybody.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"there is no address {host!r}; give one of this machine's, such as 127.0.0.1") from error
    try:
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise ValueError(
                    f"port {port} of {host} is taken; give another with --port, or --port 0 for a free one"
                ) from error
            case errno.EACCES:
                raise ValueError(f"port {port} is not for every user; give one above 1023 with --port") from error
            case errno.EADDRNOTAVAIL:
                raise ValueError(f"{host} is no address of this machine; give one, such as 127.0.0.1") from error
        raise


def _url(host: str, listening: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/"


def _answer(app: "FastAPI", listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM, which is how a service ends well."""
    import uvicorn
    from threadpoolctl import threadpool_limits

    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,  # its lines would hold whole URLs, and with them conditions that quote a corpus
        server_header=False,
        timeout_graceful_shutdown=_S_TO_END,
    )
    ends = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(each, lambda *_: None) for each in ends]  # uvicorn stops at one, and then raises it once more
    try:
        with threadpool_limits(1, "blas"):  # requests run beside each other; threads of each would wait for the others'
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        app.state.queries.close()
        for each, handler in zip(ends, before, strict=True):
            signal.signal(each, handler)
