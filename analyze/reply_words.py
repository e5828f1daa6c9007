"""Which emotion the words of a reply are those of: a lexical proxy, and no judge.

A bag of words (TF-IDF and logistic regression) learns the labels from the corpus's own utterances and reads the replies. It
sees words and not what they do: a reply that names the user's fear reads as fear, like one that is afraid. A larger model as
a judge, as in arXiv 2510.04064, was rejected: its own reading would have to be validated first, and it cannot ship with this.

Shape suffixes: N utterances, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from analyze.mapping import one_thread
from analyze.moments import Floats
from analyze.prompted_states import paired_changes
from analyze.scores import Interval, mean_interval, share_interval

_WORD = r"(?u)\b\w+\b"
_C = 10.0


@dataclass(frozen=True, slots=True)
class ReplyWords:
    """The replies of one condition. The first condition is what the others are held against."""

    condition: str
    """Which."""
    n_tokens: Interval
    """Mean length of a reply."""
    n_tokens_change: Interval
    """That, less the first condition's; paired by utterance."""
    ended: Interval
    """Share of replies that the model ended by itself, before the most tokens allowed."""
    accuracy: Interval
    """Share of replies whose words read as the user's emotion: likeliest label of the bag of words."""
    accuracy_change: Interval
    """That, less the first condition's; paired by utterance."""
    probability: tuple[Interval, ...]
    """Mean probability of each label that the bag of words gives."""
    probability_change: tuple[Interval, ...]
    """That, less the first condition's; paired by utterance."""


def fit_words(texts: Sequence[str], truth_N: NDArray[np.int64]) -> Any:
    """A bag of words that reads texts, every label weighing the same."""
    reader = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD),
        LogisticRegression(C=_C, class_weight="balanced", max_iter=1000),
    )
    with one_thread():
        return reader.fit(list(texts), truth_N)


def read_words(
    reader: Any, names: Sequence[str], replies: Sequence[pa.Table], truth_N: NDArray[np.int64], groups_N: NDArray[np.int64]
) -> list[ReplyWords]:
    """Read the replies of several conditions to the same utterances.

    Args:
        reader: from `fit_words`, of all the labels.
        names: of the conditions.
        replies: of each, a table with text, n_tokens and ended, a row for each utterance.
    """
    probability = [_probability(reader, table["text"].to_pylist()) for table in replies]
    length = [table["n_tokens"].to_numpy().astype(np.float64) for table in replies]
    right = [said_NK.argmax(axis=1) == truth_N for said_NK in probability]
    return [
        ReplyWords(
            condition=name,
            n_tokens=mean_interval(length[index], groups_N),
            n_tokens_change=mean_interval(length[index] - length[0], groups_N),
            ended=share_interval(np.array(table["ended"].to_pylist(), np.bool_), groups_N),
            accuracy=share_interval(right[index], groups_N),
            accuracy_change=mean_interval(right[index].astype(np.float64) - right[0], groups_N),
            probability=tuple(mean_interval(said_N, groups_N) for said_N in probability[index].T),
            probability_change=paired_changes(probability[0], probability[index], groups_N),
        )
        for index, (name, table) in enumerate(zip(names, replies, strict=True))
    ]


def words_accuracy(reader: Any, texts: Sequence[str], truth_N: NDArray[np.int64], groups_N: NDArray[np.int64]) -> Interval:
    """Share of texts whose likeliest label is the true one."""
    return share_interval(_probability(reader, texts).argmax(axis=1) == truth_N, groups_N)


def _probability(reader: Any, texts: Sequence[str]) -> Floats:
    with one_thread():
        return np.asarray(reader.predict_proba(list(texts)), np.float64)
