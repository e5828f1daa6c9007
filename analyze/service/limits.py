"""What a service gives at once, decided before it is read or computed."""


class OverLimitError(ValueError):
    """A request asks for more than a service gives at once."""


class BusyError(Exception):
    """As much as may be is at work; it can be asked again."""


_IN_PARTS = "take some rows with limit and offset, or write all of them on the server with affectome query --out"


def check_count(n: int, most: int, what: str, remedy: str = _IN_PARTS) -> None:
    """Refuse too many of something.

    Args:
        what: what they are, as in `rows`.
        remedy: what to do instead.

    Raises:
        OverLimitError: they are too many.
    """
    if n > most:
        raise OverLimitError(f"this asks for {n:,} {what} and at most {most:,} are given at once; {remedy}")


def check_bytes(n_bytes: int, most: int) -> None:
    """Refuse too many bytes.

    Raises:
        OverLimitError: they are too many.
    """
    check_count(n_bytes, most, "bytes")
