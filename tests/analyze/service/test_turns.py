"""Few requests are answered at once, none is too large, and a client that is slow holds up nobody for long."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from analyze.service.settings import Settings
from analyze.service.turns import Turns

SCOPE: Scope = {"type": "http", "path": "/api/runs", "method": "GET", "headers": []}


async def _body() -> Message:
    return {"type": "http.request", "body": b"all of it", "more_body": False}


async def _asked(turns: Turns, receive: Receive = _body, send: Send | None = None, path: str = "/api/runs") -> list[Message]:
    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    await turns({**SCOPE, "path": path}, receive, send or keep)
    return sent


async def _answers(_scope: Scope, receive: Receive, send: Send) -> None:
    """Says what it was sent."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def _held(started: list[int], go: asyncio.Event) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        started.append(1)
        await go.wait()
        await _answers(scope, receive, send)

    return app


def test_no_more_are_answered_at_once_than_may_be_and_the_others_are_told_to_come_again() -> None:
    async def scenario() -> None:
        started: list[int] = []
        go = asyncio.Event()
        turns = Turns(_held(started, go), Settings(at_once=2, wait_s=0.05))
        asked = [asyncio.create_task(_asked(turns)) for _ in range(5)]
        await asyncio.sleep(0.2)
        assert len(started) == 2
        go.set()
        answers = [(await task)[0] for task in asked]
        assert sorted(answer["status"] for answer in answers) == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer["status"] == 429)
        assert (b"retry-after", b"1") in refused["headers"]
        assert (await _asked(turns))[0]["status"] == 200  # a turn that is over is free again

    asyncio.run(scenario())


def test_pages_take_no_turn() -> None:
    async def scenario() -> None:
        go = asyncio.Event()
        turns = Turns(_held([], go), Settings(at_once=1, wait_s=0.01))
        holding = asyncio.create_task(_asked(turns))
        await asyncio.sleep(0.01)
        page = asyncio.create_task(_asked(turns, path="/page/page.js"))
        await asyncio.sleep(0.05)
        go.set()
        assert (await page)[0]["status"] == 200
        await holding

    asyncio.run(scenario())


@pytest.mark.parametrize(("size", "status"), [(100, 200), (101, 413)])
def test_a_body_is_no_larger_than_may_be_however_it_comes(size: int, status: int) -> None:
    pieces = [b"x" * 10] * (size // 10) + [b"x" * (size % 10)]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False

    async def receive() -> Message:
        return messages.pop(0)

    sent = asyncio.run(_asked(Turns(_answers, Settings(most_body_bytes=100)), receive))
    assert sent[0]["status"] == status
    assert status == 413 or sent[1]["body"] == b"".join(pieces)


def test_a_client_that_stops_sending_is_told_and_left() -> None:
    async def never() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    sent = asyncio.run(_asked(Turns(_answers, Settings(stall_s=0.05)), never))
    assert sent[0]["status"] == 408


def test_a_client_that_takes_nothing_loses_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def stuck(_message: Message) -> None:
            await asyncio.sleep(60)

        turns = Turns(_answers, Settings(at_once=1, stall_s=0.05))
        assert await _asked(turns, send=stuck) == []
        assert (await _asked(turns))[0]["status"] == 200

    asyncio.run(scenario())
    assert "was left" in caplog.text


def test_what_a_route_raises_gives_the_turn_back() -> None:
    async def scenario() -> None:
        async def broken(_scope: Scope, _receive: Receive, _send: Any) -> None:
            raise LookupError

        turns = Turns(broken, Settings(at_once=1, wait_s=0.01))
        for _ in range(3):
            with pytest.raises(LookupError):
                await _asked(turns)

    asyncio.run(scenario())
