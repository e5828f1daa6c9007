"""A store over HTTP: routes by subject, behind turns, behind access.

FastAPI checks the form of what is asked and writes the OpenAPI; its own pages of documentation are off, because they load
scripts from elsewhere. Routes are plain functions that run in threads: DuckDB, Arrow and NumPy work beside each other there.
"""

import transformers  # noqa: F401 - it takes its own place in sys.modules, so no two requests may be the first to load it
from fastapi import FastAPI

from analyze.query import Store
from analyze.service import pages, planes, runs, search, statements, states
from analyze.service.access import Access
from analyze.service.documents import Refusal
from analyze.service.errors import tell_errors
from analyze.service.settings import Settings
from analyze.service.shelf import Shelf
from analyze.service.turns import Turns

_REFUSALS = {
    400: "It cannot be answered.",
    401: "The token is missing or wrong.",
    403: "A page of another site asks.",
    404: "There is no such run.",
    408: "The request did not arrive in time.",
    413: "It asks for more rows, bytes, seconds or memory than are given at once.",
    415: "What is sent is not JSON.",
    422: "A parameter is missing or of the wrong form.",
    429: "Too many requests at once.",
    503: "The disk or the network of the store fails.",
}


def application(store: Store, settings: Settings) -> FastAPI:
    """The service of a store.

    Args:
        settings: without a token it answers on loopback names only; whoever binds it elsewhere must give one.
    """
    shelf = Shelf(store, settings)
    app = FastAPI(
        title="affectome",
        description="Runs, results, SQL and hidden states of one store; read only.",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": Refusal, "description": said} for status, said in _REFUSALS.items()},
    )
    drawn = planes.Planes(shelf)
    app.include_router(pages.router())
    app.include_router(runs.router(shelf))
    app.include_router(states.router(shelf))
    app.include_router(planes.router(shelf, drawn))
    app.include_router(search.router(shelf, drawn))
    app.include_router(statements.router(shelf))
    app.state.queries = shelf.queries  # for whoever ends it before the process ends
    tell_errors(app)
    app.add_middleware(Turns, settings=settings)
    app.add_middleware(Access, token=settings.token)  # the last one is asked first
    return app
