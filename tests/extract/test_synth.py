"""Synthetic corpora: no two texts alike, as balanced as can be, the same everywhere, and marked as what they are."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from cluster.cli import main
from extract.corpus import builtin_bytes, read_corpus, texts_digest
from extract.synth import METADATA_KEY, SYNTHETIC, Utterance, capacity, scatter, utterances, write_corpus

KEYWORDS: dict[str, list[str]] = json.loads(builtin_bytes("keywords.json"))
GRAMMAR = json.loads(builtin_bytes("grammar.json"))
ROWS = list(utterances(35_000, 0))

Place = tuple[int, int, int, int]
"""Where a reader of the grammar may stand: pattern, slot, alternative, words read of it."""


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


def named(text: str, label: str) -> list[str]:
    """The listed words of a class that a text contains, as the built-in corpus's tests find them."""
    spaced = f" {' '.join(words(text))} "
    return [keyword for keyword in KEYWORDS[label] if f" {keyword} " in spaced]


def slots_of(pattern: str, label: str) -> list[list[list[str]]]:
    """A pattern of grammar.json as slots of alternatives of words, where a stop is a word and fixed text one alternative."""
    own = GRAMMAR["labels"][label]
    shared = GRAMMAR["shared"] | {"remark": GRAMMAR["shared"]["remark"] + own["remarks"] + own["keyword_remarks"]}
    slots = []
    for part in re.findall(r"\[[^]]*]|\{\w+}|[^][{}]+", pattern):
        inner = part[1:-1]
        alternatives = inner.split("|") if part[0] == "[" else shared[inner] if part[0] == "{" else [part]
        slots.append([re.findall(r"[^\s.,!?]+|[.,!?]", alternative.lower()) for alternative in alternatives])
    return [slot for slot in slots if slot != [[]]]


def all_patterns() -> list[list[list[list[str]]]]:
    return [
        slots_of(layout.replace("{situation}", situation), label)
        for label, own in GRAMMAR["labels"].items()
        for situation in own["situations"]
        for layout in GRAMMAR["layouts"]
    ]


def ambiguous_beginning(patterns: list[list[list[list[str]]]]) -> list[str] | None:
    """The beginning of some text that the patterns make in two ways; None where each makes every text in one way only.

    Reads all texts at once, keeping every place where a reader may stand. Two readings of one text either come to one place
    or end together. Exact for whole grammars, where trying texts is not.
    """
    pending: list[tuple[frozenset[Place], list[str]]] = [
        (frozenset((number, 0, way, 0) for number, slots in enumerate(patterns) for way in range(len(slots[0]))), [])
    ]
    seen = {pending[0][0]}
    while pending:
        places, read = pending.pop()
        by_word: dict[str, list[Place]] = defaultdict(list)
        ended: Counter[str] = Counter()
        for number, slot, way, at in places:
            alternative = patterns[number][slot][way]
            word = alternative[at]
            if at + 1 < len(alternative):
                by_word[word].append((number, slot, way, at + 1))
            elif slot + 1 < len(patterns[number]):
                by_word[word] += [(number, slot + 1, next_way, 0) for next_way in range(len(patterns[number][slot + 1]))]
            else:
                ended[word] += 1
        for word, reached in by_word.items():
            if len(set(reached)) < len(reached):
                return [*read, word]
            if (state := frozenset(reached)) not in seen:
                seen.add(state)
                pending.append((state, [*read, word]))
        for word, times in ended.items():
            if times > 1:
                return [*read, word]
    return None


def test_no_text_of_the_whole_grammar_can_be_made_in_two_ways() -> None:
    patterns = all_patterns()
    assert all(alternative for slots in patterns for slot in slots for alternative in slot)
    assert ambiguous_beginning(patterns) is None


@pytest.mark.parametrize(
    "patterns",
    [
        ["[a|b] x", "[c|a] x"],
        ["[a|a b] [b c|c] x"],
        ["[a|b|a] x"],
        ["a b", "[a b|c]"],
        ["[a|b] [c|d] e", "b d e f", "b [d e|d]"],
    ],
)
def test_the_reader_above_agrees_with_writing_every_text_out(patterns: list[str]) -> None:
    parsed = [slots_of(pattern, "joy") for pattern in patterns]
    texts = [" ".join(itertools.chain(*ways)) for slots in parsed for ways in itertools.product(*slots)]
    assert (ambiguous_beginning(parsed) is None) == (len(set(texts)) == len(texts))


@pytest.mark.parametrize("seed", [0, 1])
def test_tens_of_thousands_of_texts_differ_even_without_their_capitals(seed: int) -> None:
    rows = ROWS if seed == 0 else list(utterances(len(ROWS), seed))
    assert len({row.text.lower().strip() for row in rows}) == len({row.utterance_id for row in rows}) == len(rows)


@pytest.mark.slow
def test_all_texts_differ_up_to_the_capacity() -> None:
    assert len({row.text.lower().strip() for row in utterances(capacity(), 3)}) == capacity()


@settings(deadline=None, max_examples=200)
@given(left=st.integers(1, 40), right=st.integers(1, 40), key=st.text(max_size=4))
def test_scattering_permutes(left: int, right: int, key: str) -> None:
    scattered = [scatter(number, (left, right), key) for number in range(left * right)]
    assert sorted(scattered) == list(range(left * right))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 3000), more=st.integers(0, 2000), seed=st.integers(0, 2**70))
def test_a_smaller_corpus_begins_a_larger_one_and_every_beginning_is_balanced(n: int, more: int, seed: int) -> None:
    larger = list(utterances(n + more, seed))
    assert list(utterances(n, seed)) == larger[:n]
    counts = Counter(row.label for row in larger[:n])
    assert max(counts.values()) - min(counts[label] for label in GRAMMAR["labels"]) <= 1
    assert len({row.text.lower() for row in larger}) == n + more
    assert [row.utterance_id for row in larger] == [f"synth-{seed}-{number:06d}" for number in range(n + more)]


def test_seeds_give_different_corpora() -> None:
    texts = [[row.text for row in utterances(500, seed)] for seed in range(4)]
    assert len({tuple(corpus) for corpus in texts}) == 4
    assert len(set(itertools.chain(*texts))) > 0.97 * 2000


def test_a_seed_gives_the_texts_it_always_gave(tmp_path: Path) -> None:
    """Another digest means other texts: then `version` of grammar.json goes up, and this line changes with it."""
    assert GRAMMAR["version"] == 1
    assert texts_digest(write_corpus(1000, 0, tmp_path / "a.parquet"))[:16] == "c0427c28812bc4aa"


def test_another_process_with_another_hash_seed_writes_the_same_corpus(tmp_path: Path) -> None:
    program = "import sys, pathlib, extract.synth as s; s.write_corpus(300, 5, pathlib.Path(sys.argv[1]))"
    paths = [tmp_path / f"{number}.parquet" for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        subprocess.run([sys.executable, "-c", program, path], check=True, env=environment)
    assert pq.read_table(paths[0]).equals(pq.read_table(paths[1]))


def test_the_seven_labels_are_those_of_the_built_in_corpus_and_come_interleaved() -> None:
    counts = Counter(row.label for row in ROWS)
    assert sorted(counts) == sorted(set(read_corpus("builtin").table["label"].to_pylist()))
    assert set(counts.values()) == {5000}
    followers = Counter(itertools.pairwise(row.label for row in ROWS))
    assert max(followers.values()) < 2 * len(ROWS) / 49


def test_the_keyword_column_is_what_the_published_lists_say() -> None:
    for row in ROWS:
        assert bool(named(row.text, row.label)) == row.keyword, row
        assert not any(named(row.text, label) for label in KEYWORDS if label != row.label), row


def test_every_situation_and_remark_keeps_to_its_keywords() -> None:
    """A remark meant to name its class does; nothing else names any."""
    for label, own in GRAMMAR["labels"].items():
        assert all(named(remark, label) for remark in own["keyword_remarks"])
        silent = [*own["situations"], *own["remarks"], *itertools.chain(*GRAMMAR["shared"].values())]
        for text, every in itertools.product(silent, KEYWORDS):
            assert not named(re.sub(r"[][|{}]", " , ", text), every), text


def test_lengths_are_mixed_and_alike_in_every_class() -> None:
    lengths = {label: [len(row.text.split()) for row in ROWS if row.label == label] for label in GRAMMAR["labels"]}
    every = list(itertools.chain(*lengths.values()))
    assert min(every) <= 6
    assert 9 <= np.median(every) <= 12
    assert 23 <= max(every) <= 30
    means = [float(np.mean(own)) for own in lengths.values()]
    assert max(means) - min(means) < 2


def test_texts_are_clean_sentences() -> None:
    for row in ROWS:
        assert re.fullmatch(r"(?:[A-Z](?:[\w',-]| (?! ))*[.!?](?: (?=[A-Z])|$))+", row.text), row.text
        assert not re.search(r"\b(\w+) \1\b", row.text.lower()), row.text
        assert not re.search(r"\ba [aeio]|\ban [^aeiouhX]", row.text), row.text


def sides(rows: list[Utterance]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for row in rows:
        found[row.pair_id].add(row.split)
    return found


def test_a_situation_stands_on_one_side_of_the_split() -> None:
    assert all(len(split) == 1 for split in sides(ROWS).values())
    for label in GRAMMAR["labels"]:
        splits = [row.split for row in ROWS if row.label == label]
        assert splits.count("test") / len(splits) == pytest.approx(0.3, abs=0.002)
        assert set(splits) == {"train", "test"}
    assert sides(ROWS) != sides(list(utterances(2000, 1)))


def situations() -> Iterator[tuple[str, list[Utterance]]]:
    by_situation = defaultdict(list)
    for row in ROWS:
        by_situation[row.pair_id].append(row)
    yield from by_situation.items()


def test_every_situation_is_told_equally_often_with_all_its_words() -> None:
    assert {len(rows) for _, rows in situations()} == {250}
    for situation, rows in situations():
        label, number = situation.rsplit("-", 1)
        pattern = GRAMMAR["labels"][label]["situations"][int(number)]
        told = " ".join(row.text.lower() for row in rows)
        for alternative in itertools.chain(*(group.split("|") for group in re.findall(r"\[([^]]*)]", pattern))):
            assert alternative.lower() in told, (situation, alternative)


def test_no_single_word_gives_a_class_away() -> None:
    texts = [(set(words(row.text)), row.label) for row in ROWS]
    uses = Counter((word, label) for bag, label in texts for word in bag)
    total = Counter(word for bag, _ in texts for word in bag)
    for (word, label), times in uses.items():
        if times > 0.8 * total[word]:
            assert times < 0.15 * 5000, (word, label)


def accuracy(train: list[Utterance], test: list[Utterance]) -> float:
    """How often a bag of words, learnt from some rows, names the class of others."""
    vectorizer = CountVectorizer(binary=True)
    known = vectorizer.fit_transform([row.text for row in train])
    model = MultinomialNB().fit(known, [row.label for row in train])
    return float(model.score(vectorizer.transform([row.text for row in test]), [row.label for row in test]))


def test_classes_can_be_told_apart_but_not_by_remembering_words_on_the_other_side_of_the_split() -> None:
    assert accuracy(ROWS[:4000], ROWS[4000:8000]) > 0.98
    train, test = ([row for row in ROWS[:8000] if row.split == split] for split in ("train", "test"))
    assert 2 / 7 < accuracy(train, test) < 0.6


@pytest.mark.parametrize(
    ("n", "seed", "sentence"),
    [
        (0, 0, "ask for 1 or more"),
        (-5, 0, "ask for 1 or more"),
        (capacity() + 1, 0, f"makes {capacity():,} distinct utterances"),
        (5, -1, "a seed of -1 is negative"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(n: int, seed: int, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        utterances(n, seed)
    with pytest.raises(ValueError, match=sentence):
        write_corpus(n, seed, tmp_path / "corpus.parquet")
    assert not list(tmp_path.iterdir())


def test_the_grammar_has_room_for_twice_the_scale_test() -> None:
    assert capacity() >= 800_000


def test_the_file_is_a_corpus_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    written = write_corpus(700, 4, path)
    corpus = read_corpus(str(path))
    assert corpus.table.equals(written)
    assert [Utterance(**row) for row in corpus.table.to_pylist()] == list(utterances(700, 4))
    assert set(corpus.table["source"].to_pylist()) == {SYNTHETIC}
    assert json.loads(pq.read_schema(path).metadata[METADATA_KEY]) == {"grammar": 1, "n": 700, "seed": 4}
    assert [file.name for file in tmp_path.iterdir()] == ["corpus.parquet"]


def affectome(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["affectome", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


def test_the_command_writes_what_check_then_calls_synthetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus.parquet"
    code, out, _ = affectome(capsys, monkeypatch, "corpus", "synth", "--n", 70, "--seed", 2, "--out", path, "--json")
    assert code == 0
    assert read_corpus(str(path)).table["text"].to_pylist() == [row.text for row in utterances(70, 2)]
    code, checked, _ = affectome(capsys, monkeypatch, "corpus", "check", path, "--json")
    assert code == 0
    assert json.loads(checked) == json.loads(out)
    assert (json.loads(out)["synthetic_texts"], json.loads(out)["repeated_texts"]) == (70, 0)
    _, _, notes = affectome(capsys, monkeypatch, "corpus", "check", path)
    assert notes.startswith("70 texts are synthetic")
    assert len(notes.splitlines()) == 1
    _, _, notes = affectome(capsys, monkeypatch, "corpus", "check", "builtin")
    assert "synthetic" not in notes


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("there.parquet", "it is not overwritten"),
        ("dangling.parquet", "it is not overwritten"),
        ("directory.parquet", "it is not overwritten"),
        ("absent/corpus.parquet", "there is no directory"),
        ("corpus.csv", "does not end in .parquet"),
    ],
)
def test_a_file_that_cannot_or_must_not_be_written_is_left_as_it_was(
    name: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.parquet").write_text("mine")
    (tmp_path / "dangling.parquet").symlink_to("nowhere")
    (tmp_path / "directory.parquet").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, _, said = affectome(capsys, monkeypatch, "corpus", "synth", "--n", 7, "--out", tmp_path / name)
    assert (code, len(said.splitlines())) == (2, 1)
    assert sentence in said
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.parquet").read_text() == "mine"
