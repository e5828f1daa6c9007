"""States as a dataset of Hugging Face's library: the utterances' columns, and their states as lists of float32 of fixed size.

The rows go to a file beside, piece after piece; the library maps that and writes it again as it writes datasets. Its
`from_generator` was rejected: it does the same by way of a cache in the user's home, under a name made from the program's code.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from analyze.exporting import Slice, tables
from extract import durable

if TYPE_CHECKING:  # an extra, which takes seconds to load
    from datasets import Features


def write_dataset(states: Slice, path: Path) -> None:
    """Write states for `datasets.load_from_disk`, whole or not at all; the description says what they are of.

    Twice the dataset's size is needed on the disk while it is written, and in memory a piece of 64 MiB.

    Args:
        path: where nothing is yet.

    Raises:
        ValueError: the library is not installed, no utterance is chosen, the library has no such type; or as from Run.hidden.
        OSError: something is there already.
    """
    try:
        from datasets import Dataset, DatasetInfo
    except ImportError as error:
        raise ValueError(
            f"writing {path.name} needs Hugging Face's datasets, which is not installed: pip install 'affectome[datasets]'"
        ) from error
    if not states.rows.num_rows:
        raise ValueError(f"a dataset holds an utterance at least, and {states.where!r} chooses none; write .parquet")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as beside:
        features = _write_stream(states, Path(beside, "rows.arrow"))
        info = DatasetInfo(description=json.dumps({"affectome": states.provenance}), features=features)
        with durable.creating_directory(path) as directory, _without_a_bar():
            Dataset.from_file(str(Path(beside, "rows.arrow")), info=info).save_to_disk(directory)


def _write_stream(states: Slice, path: Path) -> "Features":
    """The rows as the library keeps them, and what it calls their types."""
    found = tables(states, "write .safetensors")
    first = next(found)
    features = _features(first.schema)
    schema = features.arrow_schema
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_table(first.cast(schema))
        for table in found:
            stream.write_table(table.cast(schema))
    return features


def _features(schema: pa.Schema) -> "Features":
    from datasets import Features

    for field in schema:
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except (ValueError, NotImplementedError) as error:
            raise ValueError(
                f"a dataset of Hugging Face's cannot hold column {field.name!r} of the corpus, {field.type}; write .parquet"
            ) from error
    features: Features = Features.from_arrow_schema(schema.remove_metadata())
    return features


@contextmanager
def _without_a_bar() -> Iterator[None]:
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()
