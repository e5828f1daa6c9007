"""What the report says of the model asked in words is what the results say, controls and intervals included."""

from dataclasses import replace
from typing import Any

import pytest

from analyze.probes import ProbeSpec
from analyze.prompted_states import Along, Reading, Shift
from analyze.prompting import SYSTEM_PROMPTS, Condition, PromptingResult
from analyze.reply_words import ReplyWords
from analyze.report.asked import prompting_section, zero_shot_section
from analyze.report.tables import prompting_table, zero_shot_table
from analyze.scores import Interval
from analyze.zeroshot import ProbeBeside, ZeroShotResult

CLASSES = ("fear", "joy", "neutral")


def around(value: float, half: float = 0.05) -> Interval:
    return Interval(value, value - half, value + half)


ZERO_SHOT = ZeroShotResult(
    run_id="0" * 16,
    asked_run_id="1" * 16,
    prompt="Which? {{ text }}",
    max_tokens=24,
    classes=CLASSES,
    n_utterances=90,
    n_situations=60,
    n_truncated=0,
    split="the corpus's own",
    chance=1 / 3,
    coverage=around(0.9),
    accuracy=around(0.35),
    accuracy_of_valid=around(0.39),
    macro_f1=around(0.3),
    recall=(around(0.2), around(0.8), around(0.05)),
    confusion=((6, 21, 0, 3), (2, 24, 1, 3), (4, 21, 2, 3)),
    invalid_replies=(("I feel", 9),),
    beside=ProbeBeside("resid.last", ProbeSpec(), 4, around(0.7), around(0.35), around(0.71), around(0.32)),
)


def new_prompting(**change: Any) -> PromptingResult:
    conditions = tuple(Condition(name, system) for name, system in SYSTEM_PROMPTS.items())
    names = [condition.name for condition in conditions]
    reading = Reading(
        "none", "resid.prompt_last", 4, around(0.6), around(0.8), around(0.0), around(0.5), around(0.7), around(0.1)
    )
    shift = Shift("none", "emotional", "resid.prompt_last", 4, around(0.8), 0.001, (around(-0.2), around(0.01), around(0.19)))
    word = ReplyWords(
        "none", around(20), around(0), around(0.3), around(0.4), around(0.0), (around(0.3),) * 3, (around(0.0),) * 3
    )
    return PromptingResult(
        run_id="0" * 16,
        classes=CLASSES,
        n_utterances=60,
        n_situations=50,
        max_tokens=64,
        layers=(4,),
        default_system="You are helpful.",
        conditions=conditions,
        run_ids=("2" * 16,) * 3,
        readings=tuple(replace(reading, condition=name) for name in names),
        shifts=(shift,),
        along=(Along("none", 4, 1, 60, around(0.7)), Along("none", 4, 64, 3, None)),
        replies=tuple(replace(word, condition=name) for name in names),
        words_accuracy=around(0.5),
        n_words_fitted=500,
        chance=1 / 3,
        **change,
    )


def said(section: Any) -> str:
    return " ".join(section.findings)


def test_zero_shot_is_counted_both_ways_and_held_against_chance_and_the_probe() -> None:
    text = said(zero_shot_section(ZERO_SHOT))
    assert "a valid answer to 90% (85\N{EN DASH}95%) and the true one to 35% (30\N{EN DASH}40%) of all" in text
    assert "The interval includes chance." in text
    assert "Counted over valid answers alone, as arXiv 2510.04064 counts: 39%" in text
    assert "Its commonest answer is joy, 81% of the valid ones." in text
    assert "paired by utterance, is +35 points (30 to 40). The state tells more than the model says." in text


@pytest.mark.parametrize(
    ("difference", "sentence"),
    [(0.0, "Neither is shown to be ahead."), (-0.2, "The model says more than the probe reads.")],
)
def test_who_is_ahead_is_what_the_interval_of_the_difference_says(difference: float, sentence: str) -> None:
    assert ZERO_SHOT.beside is not None
    beside = replace(ZERO_SHOT.beside, difference=around(difference))
    assert sentence in said(zero_shot_section(replace(ZERO_SHOT, beside=beside)))


def test_answers_without_any_valid_one_are_told() -> None:
    none = replace(
        ZERO_SHOT, accuracy_of_valid=None, confusion=((0, 0, 0, 30),) * 3, coverage=Interval(0, 0, 0.04), beside=None
    )
    text = said(zero_shot_section(none))
    assert "valid answer to 0%" in text
    assert "valid answers alone" not in text


def test_system_prompts_say_how_far_the_state_moves_and_which_moves_are_no_chance() -> None:
    text = said(prompting_section(new_prompting()))
    assert "Under none the model's chat template writes a system prompt of its own" in text
    assert (
        "from none to emotional it moves 0.80 (0.75 to 0.85) standard deviations of a feature, more than sign flips give"
        in text
    )
    assert "fear -20 points (-25 to -15), neutral +19 points (14 to 24)" in text
    assert "joy" not in text
    assert "A lexical proxy and no judge" in text
    unmoved = replace(new_prompting(), shifts=(replace(new_prompting().shifts[0], p_value=0.4, moves=(around(0.0),) * 3),))
    text = said(prompting_section(unmoved))
    assert "not told from sign flips" in text
    assert "names no label more or less often, intervals and all" in text


def test_tables_hold_every_interval() -> None:
    answers = {(row["metric"], row["label"]): row["value"] for row in zero_shot_table([ZERO_SHOT]).to_pylist()}
    assert answers["accuracy", None] == ZERO_SHOT.accuracy.value
    assert answers["recall", "joy"] == 0.8
    assert answers["probe_less_zero_shot", None] == 0.35
    moves = prompting_table([new_prompting()]).to_pylist()
    assert [row["value"] for row in moves if row["metric"] == "move"] == [-0.2, 0.01, 0.19]
    assert [row["value"] for row in moves if row["metric"] == "reply_auroc"] == [0.7, None]
