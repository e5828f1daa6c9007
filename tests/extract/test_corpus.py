"""Corpora: one meaning in every format, and a sentence for everything that is not one."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.corpus import BUILTIN, Corpus, read_corpus, read_passages, texts_digest

_ROOT = Path(__file__).resolve().parents[2]

Row = tuple[str, str, str | None]

_words = st.text(min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
_rows = st.lists(st.tuples(_words, _words, st.none() | _words), min_size=1, max_size=6, unique_by=lambda row: row[0])
_pairs = st.lists(
    st.tuples(st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1, max_size=3)),
    min_size=1,
    max_size=5,
    unique_by=lambda pair: pair[0],
)


def _table(pairs: list[tuple[str, str]]) -> pa.Table:
    return pa.table({"utterance_id": [pair[0] for pair in pairs], "text": [pair[1] for pair in pairs]})


def _parquet(rows: list[Row]) -> bytes:
    strings = pa.string()
    columns = zip(("utterance_id", "text", "label"), zip(*rows, strict=True), strict=True)
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(values, strings) for name, values in columns}), buffer)
    return buffer.getvalue()


def _jsonl(rows: list[Row]) -> bytes:
    lines = [json.dumps({"label": label, "text": text, "utterance_id": identifier}) for identifier, text, label in rows]
    return "\n".join(lines).encode()


def _csv(rows: list[Row]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerow(("text", "utterance_id", "label"))
    writer.writerows((text, identifier, label or "") for identifier, text, label in rows)
    return buffer.getvalue().encode()


_WRITERS: dict[str, Callable[[list[Row]], bytes]] = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv}


def _refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_corpus(str(path))
    return str(caught.value)


@settings(deadline=None, max_examples=60)
@given(rows=_rows)
def test_the_same_rows_read_the_same_from_every_format(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("formats")
    for suffix, write in _WRITERS.items():
        path = directory / f"corpus{suffix}"
        path.write_bytes(write(rows))
        corpus = read_corpus(str(path))
        read = corpus.table.select(["utterance_id", "text", "label"]).to_pylist()
        assert [tuple(row.values()) for row in read] == rows, suffix
        assert corpus.digest == texts_digest(_table([(identifier, text) for identifier, text, _ in rows])), suffix


@settings(deadline=None)
@given(pairs=_pairs, data=st.data())
def test_the_digest_changes_with_any_text_any_id_and_the_order(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    others = data.draw(_pairs | st.permutations(pairs))
    assert (texts_digest(_table(pairs)) == texts_digest(_table(others))) == (pairs == others)
    row = data.draw(st.integers(0, len(pairs) - 1))
    identifier, text = pairs[row]
    for changed in ((identifier + "a", text), (identifier, text + "a")):
        assert texts_digest(_table(pairs)) != texts_digest(_table([*pairs[:row], changed, *pairs[row + 1 :]]))
    if len(text) > 1:  # a character that moves from a text into its id is no longer the same corpus
        moved = (identifier + text[0], text[1:])
        assert texts_digest(_table(pairs)) != texts_digest(_table([*pairs[:row], moved, *pairs[row + 1 :]]))


def test_a_label_or_a_column_of_the_users_own_does_not_change_the_digest() -> None:
    table = _table([("1", "a"), ("2", "b")])
    assert texts_digest(table) == texts_digest(table.append_column("label", pa.array(["x", "y"])))


_BAD_FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "an empty Parquet file": (".parquet", b"", ["not a readable .parquet"]),
    "an empty JSONL file": (".jsonl", b"", ["is empty"]),
    "an empty CSV file": (".csv", b" \n", ["is empty"]),
    "a CSV of a header alone": (".csv", b"text,label\n", ["is empty"]),
    "garbage as Parquet": (".parquet", b"\x00\x9fgarbage" * 9, ["not a readable .parquet"]),
    "Parquet with a broken footer": (".parquet", b"PAR1" + b"\0" * 50 + b"PAR1", ["not a readable .parquet"]),
    "garbage as JSONL": (".jsonl", b"\x00\x9fgarbage" * 9, ["not a readable .jsonl"]),
    "garbage as CSV": (".csv", b"\x00\x9fgarbage" * 9, []),
    "CSV that is not UTF-8": (".csv", b"text\n\xe9t\xe9\n", ["UTF8"]),
    "JSONL that is not UTF-8": (".jsonl", b'{"text":"\xe9t\xe9"}\n', ["UTF8"]),
    "no text column": (".csv", b"words,mood\na,b\n", ["'text'", "words, mood"]),
    "two text columns": (".csv", b"text,text\na,b\n", ["text"]),
    "a null text": (".jsonl", b'{"text":"a"}\n{"text":null}\n{"text":"b"}\n', ["1 of 3", "row 1", "'row-00000001'"]),
    "a row that lacks its text": (".jsonl", b'{"text":"a"}\n{"label":"x"}\n', ["1 of 2", "row 1"]),
    "texts that are all null": (".jsonl", b'{"text":null}\n{"text":null}\n', ["2 of 2", "row 0"]),
    "an empty text": (".csv", b"utterance_id,text\nx,a\ny,\n", ["1 of 2", "row 1", "'y'"]),
    "texts of whitespace": (".jsonl", b'{"text":"a"}\n{"text":" \\t\\n"}\n{"text":"\\u00a0\\u3000"}\n', ["2 of 3", "row 1"]),
    "numbers for texts": (".jsonl", b'{"text":5}\n', ["'text'", "int64"]),
    "lists for texts": (".jsonl", b'{"text":["a"]}\n', ["'text'", "list"]),
    "texts of two kinds": (".jsonl", b'{"text":"a"}\n{"text":5}\n', ["text", "row 1"]),
    "repeated ids": (".csv", b"utterance_id,text\nx,a\ny,b\nx,c\n", ["'x'", "rows 0 and 2", "unique"]),
    "a missing id": (".jsonl", b'{"utterance_id":"x","text":"a"}\n{"text":"b"}\n', ["row 1", "utterance_id"]),
    "an empty id": (".csv", b"utterance_id,text\n,a\n", ["row 0", "utterance_id"]),
    "lists for labels": (".jsonl", b'{"text":"a","label":["joy","fear"]}\n', ["'label'", "list"]),
}


@pytest.mark.parametrize(("suffix", "data", "said"), _BAD_FILES.values(), ids=_BAD_FILES.keys())
def test_a_bad_file_is_a_sentence_that_names_the_file_and_the_fault(
    suffix: str, data: bytes, said: list[str], tmp_path: Path
) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(data)
    sentence = _refusal(path)
    assert [word for word in said if word not in sentence] == []


def test_a_place_without_a_corpus_is_a_sentence_that_names_the_place(tmp_path: Path) -> None:
    assert "there is no corpus" in _refusal(tmp_path / "missing.csv")
    (tmp_path / "directory.csv").mkdir()
    assert "cannot read" in _refusal(tmp_path / "directory.csv")
    (tmp_path / "corpus.txt").write_text("text\na\n")
    assert ".parquet" in _refusal(tmp_path / "corpus.txt")
    with pytest.raises(ValueError, match="carrier-pigeon"):
        read_corpus("carrier-pigeon://far/away.csv")


def test_a_corpus_on_a_hub_out_of_reach_is_a_value_error_that_names_it() -> None:
    script = (
        "from extract.corpus import read_corpus\ntry: read_corpus('hf://datasets/a/b/c.csv')\nexcept ValueError as e: print(e)"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "hf://datasets/a/b/c.csv" in done.stdout, done.stderr[-300:]


@pytest.mark.parametrize("suffix", _WRITERS)
def test_ids_and_texts_that_look_like_dates_or_numbers_stay_what_was_written(suffix: str, tmp_path: Path) -> None:
    rows: list[Row] = [("2024-01-02", "2024-01-02 03:04:05", "007"), ("2024-01-03", "2024-01-02 03:04:06", "1e3")]
    path = tmp_path / f"dates{suffix}"
    path.write_bytes(_WRITERS[suffix](rows))
    read = read_corpus(str(path)).table.select(["utterance_id", "text", "label"]).to_pylist()
    assert [tuple(row.values()) for row in read] == rows


@pytest.mark.parametrize("suffix", _WRITERS)
def test_a_text_of_three_megabytes_is_read_whole_from_every_format(suffix: str, tmp_path: Path) -> None:
    rows: list[Row] = [("1", "a", None), ("2", "long " * 600_000, None)]
    path = tmp_path / f"long{suffix}"
    path.write_bytes(_WRITERS[suffix](rows))
    assert read_corpus(str(path)).table["text"].to_pylist() == [text for _, text, _ in rows]


def test_missing_ids_are_made_from_the_row_and_the_users_columns_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,split,stars\na,train,4\nb,test,5\n")
    rows = read_corpus(str(path)).table.to_pylist()
    assert [row["split"] for row in rows] == ["train", "test"]
    assert [row["stars"] for row in rows] == [4, 5]
    assert len({row["utterance_id"] for row in rows}) == 2


def test_integer_ids_and_classes_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"utterance_id": [10, 2], "text": ["a", "b"], "label": pa.array([1, None], pa.int8())}), path)
    assert read_corpus(str(path)).table.to_pylist() == [
        {"utterance_id": "10", "text": "a", "label": "1"},
        {"utterance_id": "2", "text": "b", "label": None},
    ]


@given(pairs=_pairs, data=st.data())
def test_head_and_take_give_the_rows_a_list_would_give(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    corpus = Corpus("mine", _table(pairs))
    limit = data.draw(st.integers(1, 7))
    rows = data.draw(st.lists(st.integers(0, len(pairs) - 1), unique=True))
    assert corpus.head(limit).digest == texts_digest(_table(pairs[:limit]))
    assert corpus.head(limit).n_rows == min(limit, len(pairs))
    assert corpus.take(rows).table["text"].to_pylist() == [pairs[row][1] for row in rows]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit of {limit}"):
        Corpus("mine", _table([("1", "a")])).head(limit)


def test_the_builtin_corpus_and_passages_are_whole() -> None:
    corpus = read_corpus(BUILTIN)
    assert corpus.name == BUILTIN
    assert {"utterance_id", "text", "label"} <= set(corpus.table.column_names)
    assert corpus.n_rows > 100
    passages = read_passages()
    assert passages.column_names == ["passage_id", "title", "text"]
    assert all(text.strip() for text in passages["text"].to_pylist())
