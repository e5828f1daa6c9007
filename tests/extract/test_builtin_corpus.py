"""The corpus that ships with affectome keeps the promises of docs/corpus.md."""

import json
import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from extract.corpus import builtin_bytes, read_corpus, read_passages
from extract.loading import load_tokenizer
from extract.models import Model

CLASSES = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
KEYWORDS: dict[str, list[str]] = json.loads(builtin_bytes("keywords.json"))
ROWS = read_corpus("builtin").table.to_pylist()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


def named(text: str, label: str) -> list[str]:
    """The listed words of a class that a text contains."""
    spaced = f" {' '.join(words(text))} "
    return [keyword for keyword in KEYWORDS[label] if f" {keyword} " in spaced]


def unit(row: dict[str, str]) -> str:
    """A pair is one situation told twice; every other utterance is its own."""
    return row["pair_id"] or row["utterance_id"]


def test_it_has_the_columns_and_sizes_promised() -> None:
    assert list(ROWS[0]) == ["utterance_id", "text", "label", "split", "keyword", "pair_id"]
    assert len(ROWS) >= 1400
    counts = Counter(row["label"] for row in ROWS)
    assert sorted(counts) == list(CLASSES)
    assert min(counts.values()) >= 200


@pytest.mark.parametrize("label", CLASSES)
def test_lengths_are_those_of_everyday_posts_in_every_class(label: str) -> None:
    lengths = [len(row["text"].split()) for row in ROWS if row["label"] == label]
    assert min(lengths) >= 5
    assert max(lengths) <= 60
    assert 12 <= float(np.median(lengths)) <= 27


def test_length_does_not_give_the_class_away() -> None:
    means = [np.mean([len(row["text"].split()) for row in ROWS if row["label"] == label]) for label in CLASSES]
    assert max(means) - min(means) < 4


def test_the_keyword_column_is_what_the_published_lists_say() -> None:
    for row in ROWS:
        own, others = (
            named(row["text"], row["label"]),
            [named(row["text"], label) for label in CLASSES if label != row["label"]],
        )
        assert not any(others), row
        assert bool(own) == row["keyword"], row


def test_at_least_half_name_no_emotion() -> None:
    for label in CLASSES:
        assert np.mean([not row["keyword"] for row in ROWS if row["label"] == label]) >= 0.5


def test_pairs_tell_one_situation_with_and_without_the_word() -> None:
    pairs = defaultdict(list)
    for row in ROWS:
        if row["pair_id"] is not None:
            pairs[row["pair_id"]].append(row)
    assert all(sorted(row["keyword"] for row in pair) == [False, True] for pair in pairs.values())
    assert all(len({(row["label"], row["split"]) for row in pair}) == 1 for pair in pairs.values())
    assert min(Counter(pair[0]["label"] for pair in pairs.values()).values()) >= 60


def test_the_split_is_stratified_by_label_and_keyword() -> None:
    for label in CLASSES:
        for keyword in (True, False):
            sides = [row["split"] for row in ROWS if (row["label"], row["keyword"]) == (label, keyword)]
            assert set(sides) == {"train", "test"}
            assert 0.25 < sides.count("test") / len(sides) < 0.35


def test_no_two_texts_are_near_duplicates() -> None:
    bags = [frozenset(words(row["text"])) for row in ROWS]
    for (first, bag), (second, other) in combinations(enumerate(bags), 2):
        limit = 0.6 if unit(ROWS[first]) == unit(ROWS[second]) else 0.4
        assert len(bag & other) <= limit * len(bag | other), (ROWS[first]["text"], ROWS[second]["text"])


def test_no_template_is_filled_in_twice() -> None:
    """No run of six words stands in two situations, and no three opening words in more than three texts."""
    seen: dict[tuple[str, ...], str] = {}
    for row in ROWS:
        spoken = words(row["text"])
        for start in range(len(spoken) - 5):
            run = tuple(spoken[start : start + 6])
            assert seen.setdefault(run, unit(row)) == unit(row), " ".join(run)
    openings = Counter(tuple(words(row["text"])[:3]) for row in ROWS)
    assert openings.most_common(1)[0][1] <= 3


def test_ids_are_unique_and_texts_are_clean() -> None:
    assert len({row["utterance_id"] for row in ROWS}) == len({row["text"] for row in ROWS}) == len(ROWS)
    assert all(row["text"] == row["text"].strip() and "\n" not in row["text"] for row in ROWS)


def test_the_passages_are_long_neutral_and_distinct(builtin_model: Model) -> None:
    passages = read_passages().to_pylist()
    tokenizer = load_tokenizer(builtin_model)
    assert len(passages) >= 8
    assert min(len(tokenizer(passage["text"])["input_ids"]) for passage in passages) >= 450
    for passage in passages:
        assert not any(named(passage["text"], label) for label in CLASSES), passage["passage_id"]
    sentences = [sentence for passage in passages for sentence in re.split(r"(?<=\.)\s+", passage["text"])]
    assert len(set(sentences)) == len(sentences)
