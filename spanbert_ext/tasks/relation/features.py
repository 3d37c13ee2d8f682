"""From a sentence with two entities to the pieces that the encoder reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.layout import PairLayout, around_text
from spanbert_ext.tasks.relation import symbols as naming
from spanbert_ext.tasks.relation.config import SHORTEST, RelationOptions
from spanbert_ext.tasks.relation.data import RelationExample
from spanbert_ext.text import WordTokens, marks_blanks, tokenise_words

# What a piece is, in the order in which pieces are kept where not all have room.
_SYMBOL, _ENTITY, _CONTEXT = range(3)

Part = tuple[list[int], int]  # ids, and what they are


class InputBuilder:
    """Builds the sequences of examples.

    Args:
        options: how entities are shown, and the room.
        symbols: symbol -> token (`symbols.choose`).
        tokenizer: the model's.
        blanks: False reads words one by one, as models of release 0.1.0 have learned them.

    Raises:
        DataError: the tokenizer lacks a symbol, or tokens that begin and end a sequence, or the
            model reads too few pieces.

    Attributes:
        length: most pieces of a sequence.
    """

    def __init__(
        self, options: RelationOptions, symbols: dict[str, str], tokenizer: Any, blanks: bool = True
    ):
        self._options, self._tokenizer, self._blanks = options, tokenizer, blanks
        self._ids = naming.ids_of(symbols, tokenizer)
        self._before, self._end = around_text(tokenizer)
        self._pair = PairLayout.of(tokenizer)
        self.length = min(options.length, tokenizer.model_max_length)
        if self.length < SHORTEST:
            raise DataError(
                f"the model reads {self.length} pieces; two entities and their symbols need "
                f"at least {SHORTEST}"
            )
        # A text that spells a symbol or [SEP] must not pose as one.
        self._reserved = {*self._ids.values(), *tokenizer.all_special_ids}

    def __call__(self, examples: Sequence[RelationExample]) -> Iterator[tuple[np.ndarray, int]]:
        """The sequence of each example: its ids, [n] int64, and how many pieces had no room.

        Symbols are never left out. Where the rest is too long, pieces of the entities go before
        others and those near a symbol or an entity before those far from it.
        """
        for example, pieces in zip(examples, self._pieces(examples), strict=True):
            body = list(self._body(example, pieces))
            behind = self._behind(example, pieces)
            room = self.length - len(self._before) - len(behind)
            ids = np.fromiter(itertools.chain.from_iterable(part for part, _ in body), np.int64)
            dropped = max(0, ids.size - room)
            if dropped:
                kinds = np.repeat([kind for _, kind in body], [len(part) for part, _ in body])
                ids = ids[_most_telling(kinds, room)]
            yield np.concatenate([self._before, ids, behind]).astype(np.int64), dropped

    def _pieces(self, examples: Sequence[RelationExample]) -> list[WordTokens]:
        """The ids of every word, as the sentence around it makes them."""
        if self._blanks and marks_blanks(self._tokenizer):
            passages = [
                (example.tokens, example.raw, example.offsets if example.raw is not None else None)
                for example in examples
            ]
        else:
            passages = [(_words(example), None, None) for example in examples]
        found = tokenise_words(
            passages,
            self._tokenizer,
            self._blanks,
            edges=[{*e.subject, *e.object} - {len(e.tokens)} for e in examples],
            every_word=False,
        )
        return [self._without_reserved(own) for own in found]

    def _without_reserved(self, pieces: WordTokens) -> WordTokens:
        """With the unknown piece in place of pieces that would pose as symbols, or without them."""
        unknown = self._tokenizer.unk_token_id
        posing = np.isin(pieces.ids, [*(self._reserved - {unknown})])
        if not posing.any():
            return pieces
        if unknown is not None:
            return replace(pieces, ids=np.where(posing, unknown, pieces.ids))
        kept = np.append(0, np.cumsum(~posing))
        return WordTokens(pieces.ids[~posing], kept[pieces.bounds], kept[pieces.first])

    def _body(self, example: RelationExample, pieces: WordTokens) -> Iterator[Part]:
        """The sentence with its symbols, in parts between the edges of entities."""
        spans = dict(zip(naming.ROLES, (example.subject, example.object), strict=True))
        edges = sorted({0, len(example.tokens), *example.subject, *example.object})
        masks, repeats = self._options.masks, self._options.input == "entity-mask-repeated"
        # Entities nest wherever they can: the longer one opens first and closes last.
        outer_first = sorted(spans, key=lambda role: spans[role][0] - spans[role][1])
        for first, stop in itertools.pairwise(edges):
            opened = [role for role in outer_first if spans[role][0] == first]
            inside = [role for role in spans if spans[role][0] <= first and stop <= spans[role][1]]
            closed = [role for role in reversed(outer_first) if spans[role][1] == stop]
            yield [self._opening(role, example) for role in opened], _SYMBOL
            if not masks or not inside:
                yield pieces.of(first, stop).tolist(), _ENTITY if inside else _CONTEXT
            elif repeats:
                yield self._repeated(example, inside, opened, stop - first), _ENTITY
            if not masks:
                yield [self._ids[naming.closing(role)] for role in closed], _SYMBOL

    def _repeated(
        self, example: RelationExample, inside: list[str], opened: list[str], count: int
    ) -> list[int]:
        """Symbols of the tokens of entities, without those that open them."""
        every = [self._opening(role, example) for role in inside]
        rest = [self._opening(role, example) for role in inside if role not in opened]
        return rest + every * (count - 1)

    def _opening(self, role: str, example: RelationExample) -> int:
        if self._options.masks or self._options.input == "typed-marker":
            return self._type(role, example)
        return self._ids[naming.opening(role)]

    def _type(self, role: str, example: RelationExample) -> int:
        type = example.subject_type if role == "SUBJ" else example.object_type
        if type is None:
            raise DataError(
                f"record {example.id}: it has no {'subject' if role == 'SUBJ' else 'object'} type, "
                f"which input {self._options.input} shows to the model"
            )
        return self._ids.get(naming.of_type(role, type), self._ids[naming.of_other_type(role)])

    def _behind(self, example: RelationExample, pieces: WordTokens) -> list[int]:
        """What follows the sentence: its [SEP], and what is shown behind that, each part as the
        second text of a pair."""
        if self._options.input == "marker-and-types":
            shown = [[self._type(role, example)] for role in naming.ROLES]
        elif self._options.input == "entity-mask-and-text":
            most = self.length // 8  # the sentence always has three quarters of the room
            shown = [_ends_of(pieces.of(*span), most) for span in (example.subject, example.object)]
        else:
            return self._end.tolist()
        between, end = self._pair.between.tolist(), self._pair.behind.tolist()
        return [*between, *shown[0], *between, *shown[1], *end]


def _ends_of(ids: np.ndarray, most: int) -> list[int]:
    """The pieces of an entity; of a long one its beginning and its end."""
    ids = ids.tolist()
    return ids if len(ids) <= most else ids[: most - most // 2] + ids[-(most // 2) :]


def _words(example: RelationExample) -> list[str]:
    """The tokens, each behind a blank if there is one in front of it.

    Tokenizers that mark the beginnings of words by the blank need it, others drop it.
    """
    if example.raw is None:
        return [*example.tokens[:1], *(" " + token for token in example.tokens[1:])]
    ends = itertools.chain([0], (end for _, end in example.offsets))
    return [
        token if start == end else " " + token
        for token, (start, _), end in zip(example.tokens, example.offsets, ends, strict=False)
    ]


def _most_telling(kinds: np.ndarray, room: int) -> np.ndarray:
    """Places of the pieces that are kept, ascending.

    Args:
        kinds: [n] what each piece is.
    """
    to_symbol = _distances(kinds == _SYMBOL)
    to_entity = _distances(kinds != _CONTEXT)
    order = np.lexsort((np.where(kinds == _CONTEXT, to_entity, to_symbol), kinds))
    return np.sort(order[:room])


def _distances(there: np.ndarray) -> np.ndarray:
    """From each place to the nearest one where it is true; it is true somewhere."""
    places, own = np.flatnonzero(there), np.arange(there.size)
    behind = np.searchsorted(places, own)
    left = places[np.maximum(behind - 1, 0)]
    right = places[np.minimum(behind, places.size - 1)]
    return np.minimum(np.abs(own - left), np.abs(own - right))
