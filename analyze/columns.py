"""What a column of labels says of each utterance: one class, any number of labels, or a number.

Which of them it is follows from the column's type, so that nobody has to say it twice. Guessing from the values was rejected:
a corpus cut short would be asked another question.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analyze.query import Run

LABEL = "label"
"""The column that is read when nobody says which."""
CLASSES = "classes"
"""Text, yes or no: one class for each utterance."""
SETS = "sets"
"""Lists of text, or of class numbers: any number of labels for each utterance."""
NUMBERS = "numbers"
"""Numbers, such as valence."""


def form_of(run: Run, column: str) -> str:
    """CLASSES, SETS or NUMBERS.

    Raises:
        ValueError: there is no such column, or what it holds is none of them.
    """
    table = run.utterances()
    if column not in table.column_names:
        raise ValueError(
            f"the corpus of run {run.run_id} has no column {column!r}, which this analysis needs; "
            f"it has {', '.join(table.column_names)}"
        )
    kind = table.schema.field(column).type
    if _is_name(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return CLASSES
    if _is_list(kind):
        each = kind.value_type
        if _is_name(each) or pa.types.is_integer(each) or pa.types.is_null(each):
            return SETS
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return NUMBERS
    raise ValueError(
        f"column {column!r} of run {run.run_id} holds {kind}; labels are text, lists of text, or numbers (one column for each "
        "of several numbers)"
    )


def usual_kind(run: Run, column: str) -> str:
    """The kind of probe that a column is read with when nobody says which.

    Raises:
        ValueError: as from form_of.
    """
    return "ridge" if form_of(run, column) == NUMBERS else "linear"


def names_of(run: Run, column: str) -> NDArray[np.str_]:
    """The class of every utterance of a run; empty where it has none.

    Raises:
        ValueError: as from form_of, or the column does not hold classes.
    """
    _require(run, column, CLASSES)
    return np.array([_named(name) for name in run.utterances()[column].to_pylist()], np.str_)


def sets_of(run: Run, column: str) -> list[frozenset[str] | None]:
    """The labels of every utterance of a run, blank ones left out; None where nothing is said.

    Raises:
        ValueError: as from form_of, or the column does not hold lists.
    """
    _require(run, column, SETS)
    return [None if names is None else frozenset(map(_named, names)) - {""} for names in run.utterances()[column].to_pylist()]


def numbers_of(run: Run, column: str) -> NDArray[np.float64]:
    """The number of every utterance of a run; NaN where it has none.

    Raises:
        ValueError: as from form_of, or the column does not hold numbers, or one of them is infinite.
    """
    _require(run, column, NUMBERS)
    table = run.utterances()
    number_N = np.array(pc.cast(table[column], pa.float64(), safe=False).to_pylist(), np.float64)  # None becomes NaN
    infinite = np.flatnonzero(np.isinf(number_N))
    if len(infinite):
        row = int(infinite[0])
        raise ValueError(
            f"{len(infinite):,} numbers of column {column!r} are infinite (first: row {row:,}, id "
            f"{table['utterance_id'][row].as_py()!r}); give them a number, or none"
        )
    return number_N


def _require(run: Run, column: str, form: str) -> None:
    found = form_of(run, column)
    if found != form:
        wanted = {CLASSES: "one label an utterance, as text", SETS: "lists of labels", NUMBERS: "numbers"}
        kind = run.utterances().schema.field(column).type
        raise ValueError(f"column {column!r} of run {run.run_id} holds {kind}; this analysis needs {wanted[form]}")


def _named(value: object) -> str:
    return "" if value is None or not str(value).strip() else str(value)


def _is_name(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_name(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
