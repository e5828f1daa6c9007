"""Without its token a service says nothing; without a token it answers to this machine's own names only."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from analyze.service.access import checked_token, is_loopback, new_token
from tests.analyze.service.conftest import asking, refused
from tests.analyze.service.stores import Planted

TOKEN = "0123456789abcdef-token"  # noqa: S105 - of tests
PATHS = ("/api/runs", "/openapi.json", "/page/index.html", "/nothing", "/api/sql")


@pytest.fixture(scope="module")
def closed(planted: Planted) -> TestClient:
    """A service with a token, bound elsewhere than on loopback."""
    client = asking(planted, token=TOKEN)
    client.base_url = client.base_url.copy_with(host="store.example")
    return client


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT"])
def test_a_request_without_the_token_gets_401(closed: TestClient, path: str, method: str) -> None:
    for headers in (
        {},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Cookie": f"affectome={TOKEN}"},
        {"Authorization": "Bearer "},
    ):
        answer = closed.request(method, f"{path}?token={TOKEN}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text


@settings(max_examples=50, deadline=None)
@given(shown=st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=60))
def test_no_other_token_opens(closed: TestClient, shown: str) -> None:
    answer = closed.get("/api/runs", headers=[(b"authorization", b"Bearer " + shown.encode("latin-1"))])
    assert answer.status_code == (200 if shown == TOKEN else 401)


def test_the_token_opens_whatever_the_host_is_called(closed: TestClient) -> None:
    answer = closed.get("/api/runs", headers={"Authorization": f"Bearer {TOKEN}", "Host": "anything.example:99"})
    assert answer.status_code == 200


def test_a_browser_signs_in_by_a_form_and_keeps_a_cookie_that_is_not_the_token(planted: Planted) -> None:
    browser = asking(planted, token=TOKEN)
    form = browser.get("/")
    assert form.status_code == 401
    assert form.headers["content-type"].startswith("text/html")
    assert not re.search(r"(src|href)=", form.text)
    wrong = browser.post("/sign-in", data={"token": "0123456789abcdef-wrong"})
    assert wrong.status_code == 401
    assert "not the token" in wrong.text
    assert browser.get("/api/runs").status_code == 401
    right = browser.post("/sign-in", data={"token": f" {TOKEN} "}, follow_redirects=False)
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"]
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert "secure" not in cookie.lower()
    assert TOKEN not in cookie
    assert browser.get("/").status_code == 200
    assert browser.get("/api/runs").status_code == 200
    other = asking(planted, token=TOKEN[::-1])
    assert other.get("/api/runs", headers={"Cookie": cookie.partition(";")[0]}).status_code == 401


def test_the_cookie_is_secure_where_the_browser_came_over_https(planted: Planted) -> None:
    browser = asking(planted, token=TOKEN)
    browser.base_url = browser.base_url.copy_with(scheme="https")
    assert "; Secure" in browser.post("/sign-in", data={"token": TOKEN}, follow_redirects=False).headers["set-cookie"]


def test_without_a_token_only_loopback_names_are_answered(planted: Planted) -> None:
    client = asking(planted)
    for name in ("localhost", "127.0.0.1:8765", "[::1]:80", "LOCALHOST:1", "a.localhost", "127.9.9.9"):
        assert client.get("/api/runs", headers={"Host": name}).status_code == 200, name
    for name in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost.evil.example", "[::]", "[", "é"):
        answer = client.get("/api/runs", headers=[(b"host", name.encode())])
        assert "answers to localhost" in refused(answer, 400), name


def test_what_a_page_of_another_site_asks_is_refused(planted: Planted) -> None:
    client = asking(planted)
    for site in ("cross-site", "same-site"):
        refused(client.get("/api/runs", headers={"Sec-Fetch-Site": site}), 403)
        assert client.get("/", headers={"Sec-Fetch-Site": site}).status_code == 200  # a link leads here
    assert client.get("/api/runs", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9", "http://["):
        refused(client.post("/api/sql", json={"sql": "SELECT 1"}, headers={"Origin": origin}), 403)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        refused(client.post("/api/sql", content='{"sql": "SELECT 1"}', headers={"Content-Type": kind}), 415)


@pytest.mark.parametrize("path", ["/", "/api/runs", "/nothing", "/page/index.html"])
def test_every_response_tells_a_browser_to_do_no_more_with_it(planted: Planted, path: str) -> None:
    headers = asking(planted).get(path, headers={"Origin": "http://evil.example"}).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["..%2findex.html", "%2e%2e/access.py", "access.py", "/etc/passwd", "%00", "__init__.py"])
def test_only_the_pages_own_files_are_sent(planted: Planted, path: str) -> None:
    refused(asking(planted).get(f"/page/{path}"), 404)


def test_tokens_are_long_enough_and_made_anew() -> None:
    assert checked_token(new_token()) != checked_token(new_token())
    for token in ("short", "with a space in the middle", "é" * 20, "new\nlines-are-no-headers"):
        with pytest.raises(ValueError, match="at least 16 characters"):
            checked_token(token)


def test_loopback_is_what_no_other_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "[::1]", "localhost", "127.1.2.3", "localhost.")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.1", "example.com", "", "localhost.example")))  # noqa: S104
