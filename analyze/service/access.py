"""Who may ask: a token for everybody, or the machine's own loopback names only.

A token comes as `Authorization: Bearer TOKEN`, or once through the form of `/` and then in a cookie, which holds a mark made of
the token and not the token. It is never taken from a URL, which logs and histories keep. Requests that a page of another site
makes a browser send are refused, and so are names that are not this machine's where there is no token: a site could let its own
name point to 127.0.0.1 and then read what its visitors' machines serve. Basic authentication was rejected: a browser sends that
along with whatever any site asks for.
"""

import asyncio
import hashlib
import hmac
import html
import ipaddress
import secrets
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from analyze.service.answers import refusal

SIGN_IN = "/sign-in"
"""Where the form of `/` sends a token."""
LEAST_CHARACTERS = 16
"""A shorter token could be found by trying."""

_ON_EVERY_RESPONSE = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a browser hides the origin of the form too
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_MOST_FORM_BYTES = 4096
_S_TO_SIGN_IN = 10
_FORM = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>affectome</title></head>
<body>
<h1>affectome</h1>
<p>{said}</p>
<form method="post" action="/sign-in">
<label>Token <input type="password" name="token" autocomplete="current-password" required autofocus></label>
<button>Sign in</button>
</form>
</body>
</html>
"""


def checked_token(token: str) -> str:
    """The token itself.

    Raises:
        ValueError: it is too short, or cannot stand in a header.
    """
    if len(token) < LEAST_CHARACTERS or not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(
            f"a token has at least {LEAST_CHARACTERS} characters of ASCII and no spaces; leave --token out and one is made"
        )
    return token


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own and is reached from nowhere else."""
    name = host.strip("[]").lower().rstrip(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761: they never leave the machine


class Access:
    """Lets through who may ask, and puts on every response what keeps a browser from doing more with it."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ON_EVERY_RESPONSE.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = await self._refused(scope, receive)
        await (answer or self._app)(scope, receive, guarded)

    async def _refused(self, scope: Scope, receive: Receive) -> Response | None:
        """What a request gets that goes no further; None for one that may."""
        headers, path = Headers(scope=scope), scope["path"]
        if self._token is None and not all(map(is_loopback, map(_host_name, headers.getlist("host") or [""]))):
            return refusal("without a token this service answers to localhost and 127.0.0.1 only; use one as its name", 400)
        if path != "/" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return refusal("this service does not answer what a page of another site asks", 403)
        if scope["method"] == "POST" and not _same_origin(headers):
            return refusal("this service does not answer what a page of another site asks", 403)
        if self._token is not None and path == SIGN_IN and scope["method"] == "POST":
            return await _sign_in(Request(scope, receive), self._token)
        if self._token is not None and not _shows(headers, self._token):
            if path == "/":
                return _form("This service is for those who have its token.")
            sentence = "this service wants its token, as in Authorization: Bearer TOKEN"
            return refusal(sentence, 401, {"www-authenticate": "Bearer"})
        if scope["method"] == "POST" and _media_type(headers) != "application/json":
            return refusal("send JSON, and say so with Content-Type: application/json", 415)
        return None


def _shows(headers: Headers, token: str) -> bool:
    """Whether a request shows the token, or the cookie that was given for it."""
    kind, _, shown = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and _same(shown.strip(), token):
        return True
    cookies = cookie_parser(headers.get("cookie", ""))
    return _same(cookies.get(_cookie_name(token), ""), _mark(token, "value"))


async def _sign_in(request: Request, token: str) -> Response:
    body = b""
    try:
        async with asyncio.timeout(_S_TO_SIGN_IN):
            async for piece in request.stream():
                body += piece
                if len(body) > _MOST_FORM_BYTES:
                    return refusal("a token is shorter than that", 413, {"connection": "close"})
    except TimeoutError:
        return refusal("the token did not arrive in time; send it again", 408, {"connection": "close"})
    fields = parse_qs(body.decode(errors="replace"))
    if not _same(fields.get("token", [""])[0].strip(), token):
        return _form("That is not the token of this service.")
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(_cookie_name(token), _mark(token, "value"), httponly=True, samesite="strict", secure=secure)
    return answer


def _cookie_name(token: str) -> str:
    """Each service's own: a browser sends the cookies of one port of a machine to all others."""
    return f"affectome-{_mark(token, 'name')[:8]}"


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _form(said: str) -> Response:
    return HTMLResponse(_FORM.format(said=html.escape(said)), 401, {"www-authenticate": "Bearer"})


def _mark(token: str, what: str) -> str:
    """64 hex digits that who has the token can make, and from which it cannot be found."""
    return hmac.new(token.encode(), f"affectome cookie {what}".encode(), hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(errors="replace"), other.encode())


def _host_name(header: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _same_origin(headers: Headers) -> bool:
    """Whether a request says that it comes from this service's own pages, or from no page."""
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:  # no URL at all
        return False
