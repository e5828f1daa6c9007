"""Values are made once, kept while they are used, and made again where making them failed."""

import threading

import pytest

from analyze.service.kept import Kept


def test_the_values_used_last_are_kept() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    kept = Kept[str, str](2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert kept.get(key, lambda key=key: make(key)) == key.upper()  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    assert kept.peek("c") is None
    assert kept.peek("b") == "B"
    kept.forget(lambda key: key == "b")
    assert kept.peek("b") is None


def test_what_fails_fails_for_all_who_wait_and_is_tried_again() -> None:
    kept, begun, go = Kept[str, str](2), threading.Event(), threading.Event()
    seen: list[str] = []

    def fail() -> str:
        begun.set()
        go.wait()
        raise LookupError("no")

    def ask() -> None:
        try:
            kept.get("a", fail)
        except LookupError as error:
            seen.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert seen == ["no", "no"]
    assert kept.get("a", lambda: "yes") == "yes"
    with pytest.raises(LookupError):
        kept.get("b", fail)
    assert kept.peek("b") is None
