"""Requests take turns: how many are answered at once, how large one is, and how slow a client may be.

They take turns in front of the routes, so that what is in memory at once is bounded by how many are answered at once. A client
that sends or takes nothing for a time, or takes a response too slowly, loses its turn: otherwise a few of them would hold all
turns for good.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from analyze.service.answers import refusal
from analyze.service.settings import Settings

API = "/api/"
"""How the paths of everything that costs begin."""

_LOGGER = logging.getLogger("affectome.service")


class Turns:
    """Lets a few requests through at once, each with its whole body; the others wait a little."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._free = asyncio.Semaphore(settings.at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(receive)
            if not scope["path"].startswith(API):
                await self._app(scope, body, self._hurried(send))
                return
            async with self._turn():
                await self._app(scope, body, self._hurried(send))
        except _RefusedError as error:
            await refusal(str(error), error.status, error.headers)(scope, receive, send)
        except _StalledError:  # nobody takes what would be said
            _LOGGER.warning("a client took a response too slowly and was left")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._settings.wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise _RefusedError(
                f"{self._settings.at_once} requests are being answered and no more are at once; ask again in a second",
                429,
                {"retry-after": "1"},
            ) from None
        try:
            yield
        finally:
            self._free.release()

    async def _body(self, receive: Receive) -> Receive:
        """The request's body, read as a whole, for whoever receives it."""
        most = self._settings.most_body_bytes
        parts, n_bytes = [], 0
        try:
            async with asyncio.timeout(self._settings.stall_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    parts.append(message.get("body", b""))
                    n_bytes += len(parts[-1])
                    more = message.get("more_body", False)
                    if n_bytes > most:
                        raise _RefusedError(f"a request sends at most {most:,} bytes here", 413, {"connection": "close"})
        except TimeoutError:
            raise _RefusedError("the request did not arrive in time; send it again", 408, {"connection": "close"}) from None
        messages: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def received() -> Message:
            return messages.pop() if messages else await receive()

        return received

    def _hurried(self, send: Send) -> Callable[[Message], Awaitable[None]]:
        clock, began = asyncio.get_running_loop().time, None

        async def hurried(message: Message) -> None:
            nonlocal began
            began = began or clock()
            try:
                async with asyncio.timeout(min(self._settings.stall_s, began + self._settings.response_s - clock())):
                    await send(message)
            except TimeoutError:
                raise _StalledError from None

        return hurried


class _RefusedError(Exception):
    """A request that does not get to the routes."""

    def __init__(self, sentence: str, status: int, headers: dict[str, str]) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers


class _StalledError(Exception):
    """A client takes nothing of its response."""
