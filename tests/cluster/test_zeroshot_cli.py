"""affectome zero-shot as a user types it, on a run of a real, tiny model with random weights."""

import json
from pathlib import Path

from analyze.query import open_store
from analyze.results import zero_shots
from cluster.commands.zeroshot import DEFAULT_MAX_TOKENS
from extract.models import Model
from tests.cluster.terminal import ended_well, typed


def test_the_answers_are_scored_kept_and_held_against_a_probe_where_there_is_one(writing_model: Model, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"text": f"{name} number {index}", "label": name} for index in range(10) for name in ("fear", "joy", "neutral")]
    corpus.write_text("\n".join(map(json.dumps, rows)))
    store = tmp_path / "store"
    run_id = ended_well("extract", "--model", writing_model.name, "--corpus", corpus, "--store", store).stdout.split()[-1]
    alone = ended_well("zero-shot", store, run_id, "--max-tokens", "5")
    assert (
        f"no linear probe of resid.last is kept to hold the answers against; make one: affectome probe {store}" in alone.stderr
    )
    assert "probe_less_zero_shot" not in alone.stdout
    ended_well("probe", store, run_id, "--layers", "1,2")
    result = json.loads(ended_well("zero-shot", store, run_id, "--max-tokens", "5", "--json").stdout)
    shown = ended_well("zero-shot", store, run_id, "--max-tokens", "5").stdout
    assert result["classes"] == ["fear", "joy", "neutral"]
    assert result["max_tokens"] == 5
    for interval in (result["coverage"], result["accuracy"], result["beside"]["accuracy"], result["beside"]["difference"]):
        assert f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in " ".join(shown.split())
    assert all(repr(reply) in shown for reply, _ in result["invalid_replies"])
    kept = zero_shots(open_store(str(store)).run(run_id))
    assert sorted(each.beside is None for each in kept) == [False, True]
    refused = typed("zero-shot", store, run_id, "--kind", "cubic").exception
    assert isinstance(refused, ValueError)
    assert "there is no probe 'cubic'" in str(refused)


def test_the_command_asks_for_as_many_tokens_as_the_analysis_does() -> None:
    from analyze.zeroshot import MAX_TOKENS

    assert DEFAULT_MAX_TOKENS == MAX_TOKENS
