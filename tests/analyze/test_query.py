"""Rows and hidden states asked of a run are the ones it holds, in order, or one sentence says why not."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from analyze.query import Run, open_store
from extract.corpus import read_corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from tests.analyze.conftest import Plant

N_ROWS = 23
WIDTH = 3
LABELS = ("joy", "fear", "it's", None)


@dataclass(frozen=True, slots=True)
class Known:
    """A run and the numbers in it."""

    run: Run
    hidden: NDArray[np.float32]


def planted(plant: Plant, layers: tuple[int, ...], rows_per_shard: int, stored_dtype: str) -> Known:
    rng = np.random.default_rng(rows_per_shard)
    hidden = rng.standard_normal((len(layers), N_ROWS, WIDTH)).astype(np.float32)
    columns = {
        "label": [LABELS[index] for index in rng.integers(0, len(LABELS), N_ROWS)],
        "n_tokens": rng.integers(0, 9, N_ROWS).tolist(),
    }
    run = plant(hidden, columns, layers=layers, rows_per_shard=rows_per_shard, stored_dtype=stored_dtype)
    kept = torch.from_numpy(hidden).to(getattr(torch, stored_dtype)).float().numpy()
    return Known(run, kept)


@pytest.fixture(
    scope="module",
    params=[((2,), 7, "bfloat16"), ((0, 3), 11, "float16"), ((1, 2, 3), 64, "float32")],
    ids=["odd shards, one layer", "two layers apart", "one shard"],
)
def known(request: pytest.FixtureRequest, plant: Plant) -> Known:
    return planted(plant, *request.param)


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    return planted(plant, (0, 1, 2), 10, "float32").run


def test_without_a_condition_every_row_comes_in_order(known: Known) -> None:
    for index, layer in enumerate(known.run.layers):
        np.testing.assert_array_equal(known.run.hidden("resid.last", layer), known.hidden[index])


def test_offset_sites_come_with_an_axis_of_offsets(plant: Plant) -> None:
    hidden = np.random.default_rng(0).standard_normal((1, 9, 3, 4)).astype(np.float32)
    run = plant(hidden, {}, offsets=(0, 1, 4), rows_per_shard=4)
    np.testing.assert_array_equal(run.hidden("resid.offset", 0), hidden[0])
    np.testing.assert_array_equal(run.hidden("resid.offset", 0, "row % 2 = 1"), hidden[0, 1::2])
    assert run.hidden("resid.offset", 0, "row < 0").shape == (0, 3, 4)


def test_a_site_read_with_the_other_function_is_refused_with_a_remedy(known: Known) -> None:
    with pytest.raises(ValueError, match=r"resid\.last does not keep every token; read it with hidden"):
        known.run.hidden_tokens("resid.last", known.run.layers[0])


def outcome(run: Run, where: str) -> list[int] | str:
    """The rows, or the sentence that refuses the condition."""
    try:
        rows: list[int] = run.utterances(where)["row"].to_pylist()
    except ValueError as error:
        return str(error)
    return rows


BAD_CONDITIONS = (
    "",
    "label =",
    "label = 'joy' AND",
    "colour = 'red'",
    "count(*) > 1",
    "label = ?",
    "true; SELECT 1",
    "true /* no end",
    "true) --",
    "row IN (SELECT column0 FROM read_csv('/etc/passwd'))",
    "row IN (SELECT 1 FROM '/etc/passwd')",
    "(SELECT content FROM read_text('/etc/passwd')) <> ''",
    "true); COPY utterances TO 'affectome-test.csv'; SELECT 1 AS row WHERE (true",
    "true); ATTACH '/tmp/affectome-test.db'; SELECT 1 AS row WHERE (true",
    "true); SET threads = 1; SELECT 1 AS row WHERE (true",
    "true); DROP VIEW utterances; SELECT 1 AS row WHERE (true",
    "true); SELECT 1 AS row WHERE (true",
    "true); SELECT 5 WHERE (true",
    "true) UNION SELECT 99999 WHERE (true",
    "true) UNION SELECT NULL WHERE (true",
    "true) UNION ALL SELECT row FROM utterances WHERE (true",
    "true) LIMIT (3",
)


@pytest.mark.parametrize("where", BAD_CONDITIONS)
def test_what_is_not_one_condition_over_the_columns_is_refused_in_one_sentence(run: Run, where: str) -> None:
    with pytest.raises(ValueError, match="where") as caught:
        run.hidden("resid.last", 0, where)
    assert "\n" not in str(caught.value)
    assert all(column in str(caught.value) for column in ("row", "label", "n_tokens"))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["row", "label", "=", "<", "3", "'joy'", "and", "or", "not", "(", "null", "--", "is"]), max_size=6)
)
@example(["row in (select 2 union select 2)"])
@example(["row = 3 -- a comment"])
@example(["row in (select row from utterances where label = 'joy' order by row desc)"])
def test_any_text_gives_ascending_rows_of_the_table_or_one_sentence(run: Run, words: list[str]) -> None:
    found = outcome(run, " ".join(words))
    assert "\n" not in found if isinstance(found, str) else found == sorted(set(found) & set(range(N_ROWS)))


def test_an_absent_site_or_layer_is_refused_and_the_message_names_those_there_are(known: Known) -> None:
    with pytest.raises(ValueError, match=r"does not hold resid\.mean; it holds resid\.last$"):
        known.run.hidden("resid.mean", known.run.layers[0])
    with pytest.raises(ValueError, match=r"no site 'logits\.last'; join one of resid"):
        known.run.hidden("logits.last", known.run.layers[0])
    for layer in {-1, 0, 1, 2, 3, 4} - set(known.run.layers):
        with pytest.raises(ValueError, match=f"does not hold layer {layer} of resid.last; it holds") as caught:
            known.run.hidden("resid.last", layer)
        named = str(caught.value).partition("it holds ")[2]
        assert named.startswith(str(known.run.layers[0]))
        assert named.endswith(str(known.run.layers[-1]))


def test_an_incomplete_run_is_refused_and_the_message_says_what_is_missing(plant: Plant) -> None:
    run = plant(np.zeros((1, 20, 2), np.float32), {}, rows_per_shard=6, missing={1, 3})
    with pytest.raises(ValueError, match="2 of 4 shards are missing"):
        run.require_complete()
    for where in (None, "row = 7"):
        with pytest.raises(ValueError, match=f"run {run.run_id} is not complete: 2 of 4 shards are missing"):
            run.hidden("resid.last", 0, where)


def test_a_run_extracted_for_real_is_found_by_prefix_and_read_in_the_same_order_as_its_texts(
    tiny_model: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    location = str(tmp_path_factory.mktemp("real") / "store")
    corpus = read_corpus("builtin").head(11)
    request = Request(model=tiny_model.name, corpus=corpus, layers="1,3", rows_per_shard=4, stored_dtype="float32")
    plan = plan_run(request, location)
    extract_missing(plan)
    run = open_store(location).run(plan.run.run_id[:5])
    assert run.run_id == plan.run.run_id
    assert [each.run_id for each in open_store(location).runs()] == [run.run_id]
    whole = {layer: run.hidden("resid.mean", layer) for layer in (1, 3)}
    assert not np.array_equal(whole[1], whole[3])
    for row, text in enumerate(corpus.table["text"].to_pylist()):
        quoted = text.replace("'", "''")
        assert run.utterances(f"text = '{quoted}'")["row"].to_pylist() == [row]
        np.testing.assert_array_equal(run.hidden("resid.mean", 3, f"text = '{quoted}'"), whole[3][[row]])
