"""SQL over the store of a service: one SELECT, as analyze.sql answers it."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from analyze.exporting import json_rows
from analyze.service.answers import ARROW, arrow_answer, columns_of, json_answer
from analyze.service.asked import Form
from analyze.service.documents import AnswerDocument
from analyze.service.shelf import Shelf

_ROWS = 1000


class Statement(BaseModel):
    """What is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sql: Annotated[str, Field(max_length=100_000)]
    """One SELECT over the tables of docs/query.md."""
    limit: Annotated[int, Field(ge=0)] = _ROWS
    """Most rows that come."""
    format: Form = "json"
    """As JSON, or as an Arrow IPC stream whose schema says `truncated` in its metadata."""


def router(shelf: Shelf) -> APIRouter:
    """The routes."""
    routes, settings = APIRouter(), shelf.settings

    @routes.post("/api/sql", response_model=AnswerDocument, responses={200: {"content": {ARROW: {}}}})
    def sql(statement: Statement) -> Response:
        """Rows that a SELECT gives."""
        limit = min(statement.limit, settings.most_rows)
        if statement.format == "arrow":
            table, truncated = shelf.queries.first_rows(statement.sql, limit, settings.most_bytes)
            return arrow_answer(table.replace_schema_metadata({"truncated": str(truncated).lower()}))
        table, truncated = shelf.queries.first_rows(statement.sql, limit, settings.most_json_bytes)
        rows = [row for batch in table.to_batches() for row in json_rows(batch)]
        return json_answer({"columns": columns_of(table.schema), "rows": rows, "truncated": truncated})

    return routes
