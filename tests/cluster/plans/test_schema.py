"""A plan is read as it is meant, or refused in a sentence that names the line, the field and what to do."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.plans.schema import (
    Analyses,
    CorpusEntry,
    ModelsEntry,
    Persistence,
    PlanFile,
    Schedule,
    TemplateEntry,
    read_plan,
)
from extract.corpus import builtin_bytes

PAGE = Path(__file__).parents[3] / "docs" / "plans.md"
LEAST = """store: emotion
corpora: [builtin]
models:
  - smollm2-135m-instruct
"""
FULL = """
store: s3://lab/emotion
schedule: {cron: 0 2 * * *, timezone: Europe/Berlin}
corpora:
  - path: builtin
    limit: 1000
  - texts/mine.csv
models:
  - match: Qwen/Qwen3-*
    min_parameters: 1e8
    max_parameters: 9e9
    gated: any
    licenses: [apache-2.0, mit]
    exclude: ["*-GGUF"]
  - {match: someone/model, revision: 0123456789abcdef0123456789abcdef01234567}
  - directory: /models
templates:
  - raw
  - {template: chat, system: "You are calm."}
  - few-shot
date: 2025-01-01
truncate: yes
analyses:
  probes:
  persistence: {per_label: 8, passage: bus-timetable-route-14}
"""


def plan_of(directory: Path, text: str) -> PlanFile:
    path = directory / "plan.yaml"
    path.write_text(text)
    return read_plan(path)


def test_the_least_plan_takes_the_defaults(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, LEAST)
    assert (plan.store, plan.sites, plan.layers, plan.dtype) == (
        str(tmp_path / "emotion"),
        "resid.last,resid.mean",
        "all",
        "auto",
    )
    assert plan.templates == (TemplateEntry("raw"),)
    assert (plan.schedule, plan.analyses.probes, plan.analyses.persistence) == (None, None, None)


def test_a_full_plan_is_read_as_it_stands(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FULL)
    assert plan.store == "s3://lab/emotion"
    assert plan.schedule == Schedule("0 2 * * *", "Europe/Berlin")
    assert [(entry.path, entry.limit) for entry in plan.corpora] == [
        ("builtin", 1000),
        (str(tmp_path / "texts/mine.csv"), None),
    ]
    pattern, pinned, directory = plan.models
    assert (pattern.min_parameters, pattern.max_parameters, pattern.gated) == (1e8, 9e9, None)
    assert (pattern.licenses, pattern.exclude, pattern.is_pattern) == (("apache-2.0", "mit"), ("*-GGUF",), True)
    assert (pinned.revision, pinned.on_hub, pinned.is_pattern) == ("0123456789abcdef0123456789abcdef01234567", True, False)
    assert (directory.directory, directory.gated) == ("/models", False)
    assert [template.source for template in plan.templates] == ["raw", "chat", builtin_bytes("few-shot.jinja").decode()]
    assert plan.templates[1].system == "You are calm."
    assert (plan.date, plan.truncate) == ("2025-01-01", True)
    assert plan.analyses.probes is not None
    assert plan.analyses.probes.kind == "linear"
    assert plan.analyses.persistence is not None
    assert plan.analyses.persistence.per_label == 8


def test_the_plan_that_the_page_shows_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)
    plan = plan_of(tmp_path, shown)
    assert [str(entry) for entry in plan.models] == ["Qwen/Qwen3-*", "lab/our-own", "/models"]


def test_the_page_names_every_field_of_a_plan() -> None:
    page = PAGE.read_text()
    for section in (PlanFile, ModelsEntry, CorpusEntry, TemplateEntry, Analyses, Persistence, Schedule):
        for field in fields(section):
            assert re.search(rf"\b{field.name}\b", page), field.name


def test_relative_paths_count_from_the_plans_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "mine.jinja").write_text("Say: {{ text }}")
    (tmp_path / "plans" / "plan.yaml").write_text(
        "store: ../emotion\ncorpora: [a.csv]\nmodels: [{directory: m}, ./one]\ntemplates: [mine.jinja]\n"
    )
    monkeypatch.chdir(tmp_path)
    plan = read_plan(Path("plans/plan.yaml"))
    base = tmp_path / "plans"
    assert plan.store == str(tmp_path / "emotion")
    assert plan.corpora[0].path == str(base / "a.csv")
    assert (plan.models[0].directory, plan.models[1].match) == (str(base / "m"), str(base / "one"))
    assert plan.templates[0].source == "Say: {{ text }}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sited: x", "line 5: sited: is no field; there are store, corpora, models, templates, "),
        ("store: again", "line 5: store stands there twice; remove one"),
        ("sites: resid.middle", "line 5: sites: there is no site 'resid.middle'"),
        ("layers: some", "line 5: layers: cannot read layers 'some'"),
        ("dtype: float16", "line 5: dtype: must be 'auto', 'bfloat16' or 'float32'"),
        ("date: yesterday", "line 5: date: 'yesterday' is no date; write it as in 2024-07-26"),
        ("truncate: perhaps", "line 5: truncate: must be a valid boolean"),
        ("templates: []", "line 5: templates: is empty; name one or more"),
        ("templates: [nope.jinja]", "line 5: templates[0]: cannot read the template"),
        ("templates: [raw, {template: raw, system: Be.}]", "line 5: templates[1]: raw has no place for a system prompt"),
        ("templates:\n  - raw\n  - {templat: raw}", "line 7: templates[1].templat: is no field; there are template, system"),
        ("templates:\n  - raw\n  - {system: Be.}", "line 7: templates[1].template: is missing"),
        ("analyses: all", "line 5: analyses: wants fields"),
        (
            "analyses:\n  persistence:\n    per_label: 3",
            "line 7: analyses.persistence.per_label: must be greater than or equal to 5",
        ),
        ("analyses: {persistence: {passage: poem}}", "analyses.persistence.passage: there is no passage 'poem'; choose from "),
        (
            "analyses: {probes: {kind: psychic}}",
            "analyses.probes.kind: must be 'linear', 'ridge', 'difference', 'logistic' or 'mlp'",
        ),
        ("sites: resid.all\nanalyses: {probes: {}}", "probes need a site with one vector for each utterance"),
        ("sites: resid.mean\nanalyses: {persistence: {}}", "add resid.last to sites"),
        ("schedule: {cron: 0 2 * * *}", "line 5: schedule.timezone: is missing"),
        ("schedule: {cron: at two, timezone: UTC}", "line 5: schedule.cron: 'at two' is not cron"),
        ("schedule: {cron: 0 2 * * *, timezone: Here}", "line 5: schedule.timezone: there is no time zone 'Here'"),
        ("  - {match: Qwen/Q*, directory: m}", "line 5: models[1]: give match or directory, one of the two"),
        ("  - {match: Q*/model}", "line 5: models[1].match: 'Q*/model' names no models"),
        ("  - {match: a/b, revision: main}", "line 5: models[1].revision: 'main' is no revision; write latest, or a commit's"),
        (f"  - {{match: a/b*, revision: {'0a' * 20}}}", "line 5: models[1]: a commit goes with one model of the hub"),
        ("  - {match: a/b, min_parameters: many}", "line 5: models[1].min_parameters: must be a valid number"),
        ("  - {match: a/b, gated: maybe}", "line 5: models[1].gated: must be a valid boolean"),
        ("  - {directory: m, licenses: [mit]}", "licenses and gated are known of models on the hub only"),
        ("  - {match: mine, max_parameters: 1e9}", "mine is one model, which filters could only take away"),
        ("  - {match: }", "line 5: models[1]: give match or directory"),
    ],
)
def test_a_wrong_plan_is_one_sentence_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"plan\.yaml") as caught:
        plan_of(tmp_path, f"{LEAST}{line}\n")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "store", "store: [", "a: &a [*a]\n", "store: x", "? {a: b}\n: c"])
def test_what_is_no_plan_at_all_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"plan\.yaml") as caught:
        plan_of(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no plan at"):
        read_plan(tmp_path / "absent.yaml")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=12) | st.sampled_from(["no", "1e8", "0x10", "null", "~", "2024-07-26", "1:30", ".inf", "yes", "3"]))
def test_any_text_is_read_as_it_stands_or_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    try:
        plan = plan_of(tmp_path, f"store: s\ncorpora: [builtin]\nmodels: [{{match: a/b*, exclude: [{quoted}]}}]\n")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ways are right
    else:
        assert plan.models[0].exclude == (text,) or not text.isprintable()
