"""What a service gives at once, decided before it is read or computed."""


class OverLimitError(ValueError):
    """A request asks for more than a service gives at once."""


class BusyError(Exception):
    """As much as may be is at work; it can be asked again."""


def check_rows(n_rows: int, most: int, what: str = "rows") -> None:
    """Refuse too many rows.

    Raises:
        OverLimitError: they are too many.
    """
    if n_rows > most:
        raise OverLimitError(
            f"this asks for {n_rows:,} {what} and at most {most:,} are given at once; "
            "take some with limit and offset, or write all of them on the server with affectome query --out"
        )


def check_bytes(n_bytes: int, most: int) -> None:
    """Refuse too many bytes.

    Raises:
        OverLimitError: they are too many.
    """
    if n_bytes > most:
        raise OverLimitError(
            f"this asks for {n_bytes:,} bytes and at most {most:,} are given at once; "
            "take some rows with limit and offset, or write all of them on the server with affectome query --out"
        )
