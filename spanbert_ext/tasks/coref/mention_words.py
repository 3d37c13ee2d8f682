"""What a mention's words tell without a parser: pronoun, name or description, and its head."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Literal

Kind = Literal["name", "nominal", "pronoun"]


def word_set(text: str) -> frozenset[str]:
    """The words of a list written as text."""
    return frozenset(text.split())


# Those before a noun; the others stand alone.
ATTRIBUTIVE = word_set("my your his her its our their thy whose")
POSSESSIVES = ATTRIBUTIVE | word_set("mine yours hers ours theirs thine")
REFLEXIVES = word_set(
    "myself yourself himself herself itself oneself ourselves yourselves themselves thyself"
)
RELATIVES = word_set("who whom whose which that what")
PRONOUNS = (
    word_set("i me you he him she it we us they them one thou thee ye 'em 't this these those")
    | POSSESSIVES
    | REFLEXIVES
    | RELATIVES
)
DETERMINERS = word_set(
    "the a an this that these those my your his her its our their some any every each no"
)
_CLITICS = frozenset(("'s", "\u2019s", "'", "\u2019"))
# What begins a complement: the head stands before it.
_BEHIND_HEAD = word_set(
    "of in on at by for from with to into upon about among between against near over under behind "
    "before after beyond within without than like as who whom whose which that where when whose "
    ", ; : ( [ - -- \u2014 \u2013"
)
FUNCTION_WORDS = (
    _BEHIND_HEAD
    | DETERMINERS
    | word_set(
        "and or but nor so if then because though although while until not never is are was were "
        "be been being am do does did has have had will would shall should can could may might "
        "must there here how why what yes no too very just only also even again"
    )
)


def head_of(words: Sequence[str]) -> str:
    """The word a mention is about: the last one before a preposition, a relative or a comma.

    A possessive ending is left off: "the king of France 's" gives "king".
    """
    end = len(words)
    if end > 1 and words[-1] in _CLITICS:
        end -= 1
    for place in range(1, end):
        if words[place].lower() in _BEHIND_HEAD and words[place - 1].lower() not in DETERMINERS:
            end = place
            break
    return words[end - 1]


def kind_of(words: Sequence[str], lower_words: Container[str] = ()) -> Kind:
    """Pronoun: one word of `PRONOUNS`; name: the head is capitalised; else nominal.

    Args:
        lower_words: words that the text writes in lower case somewhere; they make no name, for a
            capital may only begin a sentence.
    """
    if len(words) == 1 and words[0].lower() in PRONOUNS:
        return "pronoun"
    head = head_of(words)
    return "name" if head[0].isupper() and head.lower() not in lower_words else "nominal"
