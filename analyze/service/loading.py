"""Loads what takes seconds, while the first request is awaited; a request that needs it waits.

Imports in the routes alone were rejected: of two threads that import transformers at once, one finds half of it.
"""

import threading

_LOADING = threading.Lock()


def load() -> None:
    """Return when results, directions and models can be imported at once."""
    with _LOADING:
        import analyze.directions
        import analyze.new_texts
        import analyze.report.tables
        import analyze.results  # noqa: F401
