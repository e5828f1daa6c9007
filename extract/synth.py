"""A corpus of synthetic utterances, as large as a load test needs: distinct, balanced, and the same on every machine.

`extract/builtin/grammar.json` holds situations of seven classes, remarks on them, and what all classes share. An utterance is
one layout with one situation in it and every choice made, so it is a number below a product of choices; that texts of
different numbers differ is a property of the grammar, which the tests prove. Each situation's numbers are gone through in an
order that a keyed permutation gives, so no text comes twice. Drawing at random and dropping repeats was rejected: it needs all
texts in memory, slows down as the grammar is used up, and its balance is left to chance.

Row r depends on the seed and on r alone: a smaller corpus is how a larger one begins. All chance is SHA-256 of the seed and of
what is chosen. The `random` module and numpy promise less: their shuffles may change between versions.
"""

import functools
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from extract import durable
from extract.corpus import builtin_bytes
from extract.identity import canonical_json

SYNTHETIC = "synthetic"
"""What column `source` says of every utterance made here."""

METADATA_KEY = b"affectome.synthetic"
"""Key of the Parquet schema's metadata whose value is JSON: `grammar` (its version), `n` and `seed`."""

_TEST_SHARE = 0.3
_ROWS_AT_ONCE = 1 << 16
_CHOICE = re.compile(r"\[([^]]*)]|\{(\w+)}")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")
_SCHEMA = pa.schema(
    [
        ("utterance_id", pa.string()),
        ("text", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("keyword", pa.bool_()),
        ("pair_id", pa.string()),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row; the columns mean what they mean in the built-in corpus."""

    utterance_id: str
    """`synth-SEED-ROW`, the row in six digits or more."""
    text: str
    """One or two short sentences in the first person."""
    label: str
    """One of the seven classes."""
    split: str
    """`train` or `test`; a situation stands on one side only."""
    keyword: bool
    """Whether the text contains a word of `keywords.json` for its own class; it contains none of another class."""
    pair_id: str
    """The situation told, such as `anger-07`."""
    source: str
    """`synthetic`."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A layout with one situation in it."""

    pieces: tuple[str, ...]
    """Fixed text: before, between and behind the choices; one more than there are choices."""
    choices: tuple[tuple[str, ...], ...]
    """What may stand between two pieces."""

    @property
    def sides(self) -> tuple[int, int]:
        """How many ways there are to make the first half of the choices, and the others."""
        half = len(self.choices) // 2
        return math.prod(map(len, self.choices[:half])), math.prod(map(len, self.choices[half:]))

    @property
    def capacity(self) -> int:
        """How many texts it makes."""
        return math.prod(self.sides)

    def choose(self, number: int) -> list[str]:
        """The choices that a number from 0 to the capacity stands for."""
        chosen = []
        for choice in reversed(self.choices):
            number, place = divmod(number, len(choice))
            chosen.append(choice[place])
        return chosen[::-1]

    def write(self, chosen: Sequence[str]) -> str:
        """The text with these choices made, each sentence with a capital."""
        text = "".join(itertools.chain(*zip(self.pieces, [*chosen, ""], strict=True)))
        return _SENTENCE_START.sub(lambda letter: letter[0].upper(), text)


@dataclass(frozen=True, slots=True)
class _Grammar:
    version: int
    """Goes up whenever a text changes."""
    layouts: tuple[int, ...]
    """A deck of layouts: each number as often as its layout comes in a deck."""
    patterns: dict[str, tuple[tuple[_Pattern, ...], ...]]
    """For each label, for each of its situations, the pattern of each layout."""
    keyword_remarks: frozenset[str]
    """Remarks with a word of `keywords.json`."""

    @property
    def capacity(self) -> int:
        """The largest corpus: in a larger one, some layout of some situation would run out of texts."""
        often = Counter(self.layouts)
        return len(self.patterns) * min(
            len(situations) * len(self.layouts) * min(layouts[layout].capacity // often[layout] for layout in often)
            for situations in self.patterns.values()
            for layouts in situations
        )


@functools.cache
def _grammar() -> _Grammar:
    source: dict[str, Any] = json.loads(builtin_bytes("grammar.json"))
    patterns = {}
    for label, words in source["labels"].items():
        slots = source["shared"] | {"remark": [*source["shared"]["remark"], *words["remarks"], *words["keyword_remarks"]]}
        patterns[label] = tuple(
            tuple(_parse(layout.replace("{situation}", situation), slots) for layout in source["layouts"])
            for situation in words["situations"]
        )
    layouts = tuple(number for number, times in enumerate(source["layouts"].values()) for _ in range(times))
    naming = frozenset(remark for words in source["labels"].values() for remark in words["keyword_remarks"])
    return _Grammar(source["version"], layouts, patterns, naming)


def _parse(pattern: str, slots: dict[str, list[str]]) -> _Pattern:
    """Read `[this|that]` and `{slot}` as choices, the rest as fixed text."""
    parts = _CHOICE.split(pattern)
    written = zip(parts[1::3], parts[2::3], strict=True)
    choices = [tuple(inline.split("|")) if inline else tuple(slots[name]) for inline, name in written]
    return _Pattern(tuple(parts[::3]), tuple(choices))


def capacity() -> int:
    """How many utterances the grammar can make at most."""
    return _grammar().capacity


def utterances(n: int, seed: int) -> Iterator[Utterance]:
    """Make utterances, each label as often as the others to within one in any prefix.

    A deck of labels gives each row its label, a deck of that label's situations its situation, and a deck of layouts that
    situation's layout; the texts of that layout then come in the order of a permutation.

    Args:
        n: how many.
        seed: which corpus; 0 or more.

    Raises:
        ValueError: the number is below 1 or beyond the grammar's capacity, or the seed is negative.
    """
    if n < 1:
        raise ValueError(f"a corpus of {n:,} utterances is none; ask for 1 or more")
    if n > capacity():
        raise ValueError(f"the grammar makes {capacity():,} distinct utterances and not {n:,}; ask for fewer")
    if seed < 0:
        raise ValueError(f"a seed of {seed} is negative; give 0 or more")
    return _made(n, seed)


def _made(n: int, seed: int) -> Iterator[Utterance]:
    grammar = _grammar()
    labels = tuple(grammar.patterns)
    label_cards = _deal(len(labels), f"{seed}/label")
    situation_cards = {label: _deal(len(grammar.patterns[label]), f"{seed}/{label}") for label in labels}
    layout_cards = {
        (label, situation): _deal(len(grammar.layouts), f"{seed}/{label}/{situation}")
        for label in labels
        for situation in range(len(grammar.patterns[label]))
    }
    held_out = {label: _held_out(len(grammar.patterns[label]), f"{seed}/{label}/test") for label in labels}
    told: Counter[tuple[str, int, int]] = Counter()
    for row in range(n):
        label = labels[next(label_cards)]
        situation = next(situation_cards[label])
        layout = grammar.layouts[next(layout_cards[label, situation])]
        pattern = grammar.patterns[label][situation][layout]
        key = (label, situation, layout)
        chosen = pattern.choose(scatter(told[key], pattern.sides, f"{seed}/{label}/{situation}/{layout}"))
        told[key] += 1
        yield Utterance(
            utterance_id=f"synth-{seed}-{row:06d}",
            text=pattern.write(chosen),
            label=label,
            split="test" if situation in held_out[label] else "train",
            keyword=not grammar.keyword_remarks.isdisjoint(chosen),
            pair_id=f"{label}-{situation:02d}",
            source=SYNTHETIC,
        )


def scatter(number: int, sides: tuple[int, int], key: str) -> int:
    """Permute the numbers below the product of two sides: two rounds of a Feistel network whose halves need not be equal.

    Each step turns one half by what the other half and the key say, which can be undone; so different numbers stay different.
    """
    left, right = divmod(number, sides[1])
    for turn in range(2):
        right = (right + _chance(f"{key}/{turn}/right/{left}")) % sides[1]
        left = (left + _chance(f"{key}/{turn}/left/{right}")) % sides[0]
    return left * sides[1] + right


def write_corpus(n: int, seed: int, path: Path) -> pa.Table:
    """Make a corpus and write it as Parquet: the whole file or none.

    Returns:
        The table written, its schema with METADATA_KEY.

    Raises:
        ValueError: the path does not end in .parquet, something is there already, its directory is missing, or see utterances.
    """
    _check_free(path)
    table = _table(n, seed)
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(table, sink, row_group_size=_ROWS_AT_ONCE, compression="zstd")
    if not durable.create(path, sink.getvalue()):
        raise ValueError(_taken(path))
    return table


def _check_free(path: Path) -> None:
    if path.suffix.lower() != ".parquet":
        raise ValueError(f"{path} does not end in .parquet; a synthetic corpus is written as Parquet")
    if path.exists() or path.is_symlink():
        raise ValueError(_taken(path))
    if not path.parent.is_dir():
        raise ValueError(f"there is no directory {path.parent} to write {path.name} into; make it first")


def _taken(path: Path) -> str:
    return f"there is something at {path} already, and it is not overwritten; remove it or name another file"


def _table(n: int, seed: int) -> pa.Table:
    made = utterances(n, seed)
    mark = canonical_json({"grammar": _grammar().version, "n": n, "seed": seed})
    batches = []
    while rows := list(itertools.islice(made, _ROWS_AT_ONCE)):
        arrays = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in _SCHEMA]
        batches.append(pa.record_batch(arrays, schema=_SCHEMA))
    return pa.Table.from_batches(batches).replace_schema_metadata({METADATA_KEY: mark})


def _deal(cards: int, key: str) -> Iterator[int]:
    """Deal the cards 0, 1 ... for ever, from decks that hold each card once and are shuffled anew."""
    for deck in itertools.count():
        yield from _shuffled(cards, f"{key}/{deck}")


def _held_out(situations: int, key: str) -> frozenset[int]:
    return frozenset(_shuffled(situations, key)[: round(situations * _TEST_SHARE)])


def _shuffled(cards: int, key: str) -> list[int]:
    return sorted(range(cards), key=lambda card: _chance(f"{key}/{card}"))


def _chance(key: str) -> int:
    """A number below 2**64 that the key determines and nothing predicts."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
