"""Coreference by strings alone, to compare a model with.

Mentions come from the gold standard or from `rule_mentions`; they are clustered by their whole
string or by their head word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from spanbert_ext.tasks.coref.data import Clusters, Document, Span
from spanbert_ext.tasks.coref.mention_words import (
    ATTRIBUTIVE,
    DETERMINERS,
    FUNCTION_WORDS,
    PRONOUNS,
    head_of,
    kind_of,
)

_LONGEST_DESCRIPTION = 3  # words behind the determiner


def gold_mentions(document: Document) -> list[Span]:
    """All mentions of the document's clusters, in order."""
    return sorted(span for cluster in document.clusters for span in cluster)


def same_string(document: Document, mentions: Iterable[Span], pronouns: bool = True) -> Clusters:
    """Mentions whose words are equal but for case corefer.

    Args:
        pronouns: cluster pronouns in this way too; otherwise each is alone.
    """
    return _grouped(document, mentions, lambda words: " ".join(words).lower(), pronouns)


def same_head(document: Document, mentions: Iterable[Span], pronouns: bool = True) -> Clusters:
    """Mentions whose head words (`mention_words.head_of`) are equal but for case corefer.

    Args:
        pronouns: cluster pronouns by their string; otherwise each is alone.
    """
    return _grouped(document, mentions, lambda words: head_of(words).lower(), pronouns)


def _grouped(
    document: Document,
    mentions: Iterable[Span],
    name: Callable[[tuple[str, ...]], str],
    pronouns: bool,
) -> Clusters:
    groups: dict[object, list[Span]] = {}
    for first, last in sorted(set(mentions)):
        words = document.words[first : last + 1]
        alone = not pronouns and kind_of(words) == "pronoun"
        groups.setdefault((first, last) if alone else name(words), []).append((first, last))
    return tuple(sorted(map(tuple, groups.values())))


def rule_mentions(document: Document) -> list[Span]:
    """Pronouns, runs of capitalised words, and determiners with up to three words behind them.

    A capital that only begins a sentence makes no name where the document writes the word in lower
    case elsewhere.
    """
    words = document.words
    lower = {word for word in words if word[0].islower()}
    found: set[Span] = set()
    place = 0
    while place < len(words):
        end = place
        word = words[place].lower()
        if word in DETERMINERS:
            end = _description_end(document, place)
        elif word not in PRONOUNS:
            end = _name_end(document, place, lower)
        if end > place:
            found.add((place, end - 1))
        # "his dog" holds two mentions, "this dog" one.
        if word in ATTRIBUTIVE or (word in PRONOUNS and end == place):
            found.add((place, place))
        place = max(end, place + 1)
    return sorted(found)


def _name_end(document: Document, place: int, lower: set[str]) -> int:
    """The place behind a run of capitalised words; `place` itself where none begins."""
    end, words = place, document.words
    while (
        end < len(words)
        and document.sentence_of_word[end] == document.sentence_of_word[place]
        and words[end][0].isupper()
        and words[end].lower() not in FUNCTION_WORDS | PRONOUNS
        and words[end].lower() not in lower
    ):
        end += 1
    return end


def _description_end(document: Document, place: int) -> int:
    """The place behind a determiner and the words it may belong to; `place` where none follows."""
    end, words = place + 1, document.words
    while (
        end < min(len(words), place + 1 + _LONGEST_DESCRIPTION)
        and document.sentence_of_word[end] == document.sentence_of_word[place]
        and words[end][0].isalpha()
        and words[end].lower() not in FUNCTION_WORDS | PRONOUNS
        and not words[end].endswith(("ed", "ly"))
    ):
        end += 1
    return end if end > place + 1 else place
