"""Words as the tokens that an encoder reads.

Byte-level and SentencePiece tokenizers see the blank before a word, so a word's tokens depend on
what stands before it: these read the whole text, and a word's tokens are found by their offsets.
For WordPiece a word is the same wherever it stands, so every distinct word is tokenised once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np

from spanbert_ext.errors import ConfigError
from spanbert_ext.text.splitting import Span, is_unspaced
from spanbert_ext.text.tokens import Tokens, token_ids, tokenise

# Punctuation of Chinese and Japanese, which has no blanks around it.
_SIGNS = re.compile("[\u3001-\u303f\uff00-\uff65]")


@dataclass(frozen=True, slots=True, eq=False)
class WordTokens:
    """The tokens of a text's words.

    Args:
        ids: [T] int64.
        bounds: [W + 1] int64; the tokens of word w are bounds[w] to bounds[w + 1] - 1. A word
            without any lies inside the last token of the word before it (`shared`).
        first: [W] int64, the first token that holds a character of the word; those of the word that
            stand before it are white space.
    """

    ids: np.ndarray
    bounds: np.ndarray
    first: np.ndarray

    @property
    def shared(self) -> np.ndarray:
        """[W] bool, the word has no token of its own."""
        return self.bounds[1:] == self.bounds[:-1]

    def of(self, start: int, stop: int) -> np.ndarray:
        """The ids of words start..stop - 1."""
        return self.ids[self.bounds[start] : self.bounds[stop]]

    def shortened(self, most: int) -> WordTokens:
        """With at most so many tokens of a word: of a longer one the first, without white space."""
        sizes = np.diff(self.bounds)
        if not (sizes > most).any():
            return self
        begins = self.bounds[:-1]
        skipped = np.where(sizes > most, self.first - begins, 0)
        place = np.arange(len(self.ids)) - np.repeat(begins + skipped, sizes)
        bounds = np.append(0, np.cumsum(np.minimum(sizes - skipped, most)))
        first = bounds[:-1] + self.first - begins - skipped
        return WordTokens(self.ids[(place >= 0) & (place < most)], bounds, first)


# Words, the text that they come from and their places there; without a text, words alone.
Passage = tuple[Sequence[str], str | None, Sequence[Span] | None]


def marks_blanks(tokenizer: Any) -> bool:
    """Whether a word's tokens may depend on the blank before it (all but WordPiece and words)."""
    from tokenizers import models

    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and not isinstance(
        backend.model, (models.WordPiece, models.WordLevel)
    )


def tokenise_words(
    passages: Sequence[Passage],
    tokenizer: Any,
    blanks: bool = True,
    edges: Sequence[Iterable[int]] | None = None,
    every_word: bool = True,
    **options: Any,
) -> list[WordTokens]:
    """The tokens of the words of each passage, as the text around them makes them.

    A word that the tokenizer leaves nothing of (control characters, an accent alone) is one unknown
    token. Words without a text are joined by blanks, in scripts without blanks by nothing.

    Args:
        blanks: False tokenises every word alone, also where that loses the blank before it.
        edges: of each passage, words that begin with a token of their own.
        every_word: False leaves words that no token is left of without one.
        options: further arguments of the tokenizer.

    Raises:
        ConfigError: a word needs the unknown token and the tokenizer has none.
    """
    in_context = blanks and marks_blanks(tokenizer)
    chunks = [
        _chunks(passage, in_context, cuts)
        for passage, cuts in zip(passages, edges or [()] * len(passages), strict=True)
    ]
    builder = _Builder(tokenizer, options, every_word)
    found = builder(chunks)
    if in_context and edges is not None:
        # A token that reaches over an edge: what lies between edges becomes a text of its own.
        cut = [n for n, cuts in enumerate(edges) if found[n].shared[list(cuts)].any()]
        for n, own in zip(
            cut,
            builder([_apart(chunks[n][0], edges[n]) for n in cut]),
            strict=True,
        ):
            found[n] = own
    return found


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What is tokenised together: a text, and its words' offsets; None where it is one word."""

    text: str
    offsets: Sequence[Span] | None = None


def _chunks(passage: Passage, in_context: bool, cuts: Iterable[int]) -> list[_Chunk]:
    words, text, offsets = passage
    if in_context:
        return [_Chunk(text, offsets) if text is not None else _joined(words)] if words else []
    if text is None or not is_unspaced(text):
        return [_Chunk(word) for word in words]
    # Characters that stand together are parts of what the tokenizer takes for one word.
    own = set(cuts)
    begins = [
        n
        for n in range(len(words))
        if n == 0
        or n in own
        or offsets[n - 1][1] < offsets[n][0]
        or not is_unspaced(words[n - 1] + words[n])
    ]
    return [
        _Chunk(words[first])
        if stop == first + 1
        else _cut(text, offsets[first:stop], offsets[first][0], offsets[stop - 1][1])
        for first, stop in zip(begins, [*begins[1:], len(words)], strict=True)
    ]


def _cut(text: str, offsets: Sequence[Span], start: int, stop: int) -> _Chunk:
    return _Chunk(text[start:stop], [(a - start, b - start) for a, b in offsets])


def _joined(words: Sequence[str]) -> _Chunk:
    """Words as a text."""
    unspaced = [is_unspaced(word) or _SIGNS.search(word) for word in words]
    gaps = ["" if a or b else " " for a, b in zip(unspaced, unspaced[1:], strict=False)]
    ends = list(
        accumulate(len(gap) + len(word) for gap, word in zip(["", *gaps], words, strict=True))
    )
    text = "".join(chain.from_iterable(zip(["", *gaps], words, strict=True)))
    return _Chunk(text, [(end - len(word), end) for end, word in zip(ends, words, strict=True)])


def _apart(chunk: _Chunk, cuts: Iterable[int]) -> list[_Chunk]:
    """A chunk cut before some of its words, each part with the white space before it."""
    begins = sorted({0, *cuts} - {len(chunk.offsets)})
    stops = [*begins[1:], len(chunk.offsets)]
    ends = [chunk.offsets[stop - 1][1] for stop in stops[:-1]] + [len(chunk.text)]
    return [
        _cut(chunk.text, chunk.offsets[first:stop], start, end)
        for first, stop, start, end in zip(begins, stops, [0, *ends], ends, strict=False)
    ]


class _Builder:
    """From chunks to the tokens of their words."""

    def __init__(self, tokenizer: Any, options: dict[str, Any], every_word: bool):
        self._tokenizer, self._options, self._every_word = tokenizer, options, every_word

    def __call__(self, passages: Sequence[Sequence[_Chunk]]) -> list[WordTokens]:
        every = [chunk for chunks in passages for chunk in chunks]
        alone = (chunk.text for chunk in every if chunk.offsets is None)
        together = (chunk.text for chunk in every if chunk.offsets is not None)
        ids = token_ids(alone, self._tokenizer, **self._options)
        if self._every_word:
            ids = {word: own if len(own) else self._unknown(word) for word, own in ids.items()}
        tokens = tokenise(together, self._tokenizer, **self._options)
        return [self._passage(chunks, ids, tokens) for chunks in passages]

    def _passage(
        self, chunks: Sequence[_Chunk], ids: dict[str, np.ndarray], tokens: dict[str, Tokens]
    ) -> WordTokens:
        parts, sizes, leads = [np.zeros(0, dtype=np.int64)], [0], []
        for chunk in chunks:
            if chunk.offsets is None:
                own = ids[chunk.text]
                sizes.append(len(own))
                leads.append(0)
            else:
                own, counts, before = self._own(chunk, tokens)
                sizes += counts.tolist()
                leads += before.tolist()
            parts.append(own)
        bounds = np.cumsum(sizes, dtype=np.int64)
        return WordTokens(np.concatenate(parts), bounds, bounds[:-1] + np.array(leads, np.int64))

    def _own(
        self, chunk: _Chunk, tokens: dict[str, Tokens]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, and of each word how many of them it has and the place of its first one there."""
        found = tokens[chunk.text]
        ids, (starts, ends) = found.ids, found.offsets.T
        begins, stops = np.array(chunk.offsets, dtype=np.int64).reshape(-1, 2).T
        count = len(begins)
        # The word that a token begins in; white space belongs to the word behind it.
        owner = np.searchsorted(begins, starts, side="right") - 1
        owner += (owner < 0) | (starts >= stops[owner])
        owner = np.maximum.accumulate(np.minimum(owner, count - 1))
        sizes = np.bincount(owner, minlength=count)
        at = np.cumsum(sizes) - sizes
        empty = np.flatnonzero(sizes == 0)
        reached = np.append(0, np.maximum.accumulate(ends))[at[empty]]
        lost = empty[reached <= begins[empty]] if self._every_word else empty[:0]
        if len(lost):
            ids = np.insert(ids, at[lost], [self._unknown(chunk.text)[0]] * len(lost))
            owner = np.insert(owner, at[lost], lost)
            starts, ends = (
                np.insert(x, at[lost], y[lost]) for x, y in ((starts, begins), (ends, stops))
            )
            sizes = np.bincount(owner, minlength=count)
        holds = (starts < ends) & (ends > begins[owner])
        at = np.cumsum(sizes) - sizes
        # Of tokens that are white space alone (a word whose characters were dropped) the first one.
        place = np.where(holds, np.arange(len(ids)), len(ids))
        leads = np.zeros(count, dtype=np.int64)
        own = np.flatnonzero(sizes)
        if len(own):
            first = np.minimum.reduceat(place, at[own])
            leads[own] = np.where(first < len(ids), first - at[own], 0)
        leads[sizes == 0] = -1
        return ids, sizes, leads

    def _unknown(self, text: str) -> np.ndarray:
        id = self._tokenizer.unk_token_id
        if id is None:
            raise ConfigError(
                f"the tokenizer leaves nothing of a word of {text[:40]!r} and has no unknown token "
                "to stand for it; set its unk_token"
            )
        return np.array([id], dtype=np.int64)
