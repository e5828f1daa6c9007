"""What is said when something cannot be answered: always `{"error": one sentence}`, never where in the program it happened.

A ValueError of the library is its sentence to whoever asks. An error of the disk or the network is told as that, and is the one
kind that is the server's (503). Everything else is a bug: it is logged, and told as one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from analyze.service.answers import refusal
from analyze.service.limits import BusyError, OverLimitError
from extract.store import UnknownRunError

_CHOICES = "docs/serve.md and /openapi.json say what can be asked"
_SHOWN = 3
_LONGEST = 100


def tell_errors(app: FastAPI) -> None:
    """Make an application answer what it cannot do in this form."""
    app.add_exception_handler(OverLimitError, lambda _, error: refusal(str(error), 413))
    app.add_exception_handler(UnknownRunError, lambda _, error: refusal(str(error), 404))
    app.add_exception_handler(BusyError, lambda _, error: refusal(str(error), 429, {"retry-after": "1"}))
    app.add_exception_handler(ValueError, lambda _, error: refusal(str(error) or "this cannot be answered", 400))
    app.add_exception_handler(OSError, lambda _, error: refusal(f"the store cannot be read now: {error}", 503))
    app.add_exception_handler(RequestValidationError, _wrong_form)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(
        Exception, lambda _, error: refusal(f"the service failed with {type(error).__name__}; its log says more", 500)
    )


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for these"
    match error.status_code:
        case 404:
            sentence = f"there is nothing at {_short(request.url.path)}; {_CHOICES}"
        case 405:
            sentence = f"{_short(request.method)} is not for {_short(request.url.path)}; {_CHOICES}"
        case _:
            sentence = str(error.detail)
    return refusal(sentence, error.status_code, error.headers)


def _wrong_form(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for these"
    problems: Sequence[Mapping[str, Any]] = error.errors()
    said = "; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return refusal(f"this is not of the right form: {said}{more}", 422)


def _place(loc: Sequence[str | int]) -> str:
    """Where in the request, without whether it was in the body or the query."""
    return _short(".".join(map(str, loc[1:] or loc)))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
