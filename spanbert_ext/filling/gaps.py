"""A gap in a text: as the pieces around it that a model reads, and as the text that may fill it.

Text keeps its characters: what stands around a gap is never decoded from pieces, so offsets are
right whatever the tokenizer drops (case, accents, white space). Where no white space parts the gap
from a word, a filling continues that word:

* WordPiece: behind a letter come `##` pieces or punctuation, elsewhere pieces without the prefix;
  a word that goes on behind the gap is read as `##` pieces.
* tokenizers that mark the space before a word: behind white space come pieces with the mark, else
  pieces without.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models

from spanbert_ext.data import VocabularyInfo
from spanbert_ext.errors import ConfigError, DataError

# What else marks a gap, besides the mask token: one blank, of any number of pieces.
_BLANK = r"\[SPAN\]|_{3,}"
_UNUSED = re.compile(r"\[unused\d+\]")
# Characters beside a gap that decide whether a word goes on there.
_NEAR = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Gap:
    """A gap and what is around it.

    Args:
        before, after: the text around it, unchanged.
        left, right: its pieces, as ids, without special tokens.
        pieces: how many are missing; None where that is not known.
        first: [V] bool, pieces that may come first.
        joined: the word behind the gap goes on from its last piece.
    """

    before: str
    after: str
    left: list[int]
    right: list[int]
    pieces: int | None
    first: np.ndarray
    joined: bool


class GapReader:
    """Finds gaps and writes fillings, for one tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers, or a `tokenizers.Tokenizer`.

    Raises:
        DataError, TypeError: as `VocabularyInfo.from_tokenizer`.
    """

    def __init__(self, tokenizer):
        self.info = info = VocabularyInfo.from_tokenizer(tokenizer)
        spec = json.loads(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())
        spec |= {"truncation": None, "padding": None}
        inside = copy.deepcopy(spec)
        for part in ("normalizer", "pre_tokenizer"):
            inside[part] = _without_first_space(inside[part])
        self._from_start = Tokenizer.from_str(json.dumps(spec))
        self._from_inside = Tokenizer.from_str(json.dumps(inside))
        self._starts = info.word_starts
        self._ordinary = np.array([not _UNUSED.fullmatch(piece) for piece in info.pieces])
        self._ordinary[list(info.special_ids)] = False
        if info.unk_id is not None:
            self._ordinary[info.unk_id] = False
        probe = self._from_start.encode("a", add_special_tokens=False).ids
        self._adds_space = info.space_marked and bool(probe) and bool(self._starts[probe[0]])
        self._continuations = _continuation_model(spec, info)
        masks = "|".join({re.escape(word) for word in ("[MASK]", info.pieces[info.mask_id])})
        self._mask = re.compile(masks)
        self._gap = re.compile(rf"{_BLANK}|(?:{masks})(?:\s*(?:{masks}))*")

    @property
    def ordinary(self) -> np.ndarray:
        """[V] bool, pieces that may stand in a filling."""
        return self._ordinary

    def read(self, text: str, span: tuple[int, int] | None, pieces: int | None) -> Gap:
        """The gap of a text.

        Args:
            text: with a marker, unless `span` is given.
            span: range of characters that is the gap; white space at its ends stays.
            pieces: how many are missing, None where that is not known.

        Raises:
            DataError: no text, no marker or several.
            ConfigError: the range lies outside, or `pieces` is not what the markers say.
        """
        if not text.strip():
            raise DataError("the text is empty")
        if span is None:
            start, stop, pieces = self._find(text, pieces)
        else:
            start, stop = _checked_range(text, span)
        before, after = text[:start], text[stop:]
        joined = not self.info.space_marked and not self._splits_before(after)
        left = self._from_start.encode(before.rstrip(), add_special_tokens=False).ids
        right = self._continued(after.rstrip()) if joined else self._inside(after.rstrip())
        return Gap(before, after, left, right, pieces, self._first(before), joined)

    def write(self, gap: Gap, ids: list[int]) -> str | None:
        """The text of a filling; None where the pieces make no text there."""
        if not self._fit_together(gap, ids):
            return None
        pieces = [self.info.pieces[i] for i in ids]
        decoder = self._from_start.decoder
        if not self.info.space_marked:
            # The first piece without its prefix, which a decoder would leave on it.
            pieces[0] = self.info.texts[ids[0]]
            decoder = decoder or decoders.WordPiece()
        text = (decoder or decoders.Metaspace()).decode(pieces)
        if self._starts[ids[0]]:
            text = text.removeprefix(" ")
        # Bytes that are no character yet; or white space that is not between words.
        return None if "\ufffd" in text or not text or text != text.strip() else text

    def _find(self, text: str, pieces: int | None) -> tuple[int, int, int | None]:
        """(start, stop, pieces) of the one marker."""
        found = list(self._gap.finditer(text))
        if len(found) != 1:
            places = ", ".join(f"{m.group()!r} at character {m.start()}" for m in found[:3])
            raise DataError(
                f"the text must have one gap, it has {len(found)}{': ' if found else ''}{places}; "
                "mark it by [MASK], repeated for several pieces, or by ___ or [SPAN], or give its "
                "range of characters"
            )
        masks = len(self._mask.findall(found[0].group()))
        if masks > 1 and pieces not in (None, masks):
            raise ConfigError(f"pieces: {pieces}, but the text marks a gap of {masks}")
        return found[0].start(), found[0].end(), pieces or masks or None

    def _first(self, before: str) -> np.ndarray:
        """[V] bool, pieces that may follow on the text before a gap."""
        if self.info.space_marked:
            space = before[-1].isspace() if before else self._adds_space
            return self._ordinary & (self._starts if space else ~self._starts)
        if self._splits_behind(before):
            return self._ordinary & self._starts
        return self._ordinary & (~self._starts | self._opens)

    def _fit_together(self, gap: Gap, ids: list[int]) -> bool:
        """Whether every piece that continues a word has one to continue."""
        if self.info.space_marked:
            return True
        inner = any(
            self._closes[one] and not self._starts[next_one]
            for one, next_one in zip(ids, ids[1:], strict=False)
        )
        return not inner and not (gap.joined and self._closes[ids[-1]])

    @functools.cached_property
    def _opens(self) -> np.ndarray:
        """[V] bool, pieces that begin a word even behind a letter, as punctuation does."""
        splits = functools.cache(self._splits_before)
        return np.array([bool(text) and splits(text[0]) for text in self.info.texts])

    @functools.cached_property
    def _closes(self) -> np.ndarray:
        """[V] bool, pieces behind which no word goes on."""
        splits = functools.cache(self._splits_behind)
        return np.array([bool(text) and splits(text[-1]) for text in self.info.texts])

    def _splits_behind(self, text: str) -> bool:
        """Whether a letter right behind the text would begin a word."""
        return not text or text[-1].isspace() or self._words(text[-_NEAR:] + "a")[-1] == "a"

    def _splits_before(self, text: str) -> bool:
        """Whether the text would begin a word right behind a letter."""
        return not text or text[0].isspace() or self._words("a" + text[:_NEAR])[0] == "a"

    def _words(self, text: str) -> list[str]:
        return [word for word, _ in self._pre_tokenized(text)[1]]

    def _pre_tokenized(self, text: str) -> tuple[str, list[tuple[str, tuple[int, int]]]]:
        """The normalised text, and its words with their places there."""
        normalizer, splitter = self._from_inside.normalizer, self._from_inside.pre_tokenizer
        text = normalizer.normalize_str(text) if normalizer else text
        if splitter is None:
            return text, [(m.group(), m.span()) for m in re.finditer(r"\S+", text)]
        return text, splitter.pre_tokenize_str(text)

    def _inside(self, text: str) -> list[int]:
        """Ids of text that something stands before."""
        return self._from_inside.encode(text, add_special_tokens=False).ids

    def _continued(self, text: str) -> list[int]:
        """Ids of text whose first word has begun before it."""
        normal, words = self._pre_tokenized(text)
        if self._continuations is None or not words:
            return self._inside(text)
        word, (_, end) = words[0]
        return [t.id for t in self._continuations.tokenize(word)] + self._inside(normal[end:])


def _checked_range(text: str, span: tuple[int, int]) -> tuple[int, int]:
    start, stop = span
    if not 0 <= start <= stop <= len(text):
        raise ConfigError(
            f"span: ({start}, {stop}) is no range of the text's {len(text)} characters"
        )
    inside = text[start:stop]
    if inside.strip():
        start, stop = start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())
    return start, stop


def _without_first_space(node: Any) -> Any:
    """A part of a tokenizer.json that puts no space before the beginning of a text."""
    if isinstance(node, list):
        return [_without_first_space(part) for part in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    node = {name: _without_first_space(part) for name, part in node.items()}
    if kind == "ByteLevel":
        node["add_prefix_space"] = False
    if kind == "Metaspace":
        node.pop("add_prefix_space", None)
        node["prepend_scheme"] = "never"
    return node


def _continuation_model(spec: dict, info: VocabularyInfo) -> models.WordPiece | None:
    """Splits the rest of a word that has begun already into `##` pieces; None where there are no
    such pieces."""
    prefix = spec["model"].get("continuing_subword_prefix")
    if spec["model"].get("type") != "WordPiece" or not prefix or info.unk_id is None:
        return None
    vocab = {
        text: i
        for i, (text, piece) in enumerate(zip(info.texts, info.pieces, strict=True))
        if piece.startswith(prefix)
    }
    unknown = info.pieces[info.unk_id]
    vocab[unknown] = info.unk_id
    return models.WordPiece(vocab, unk_token=unknown, continuing_subword_prefix="")
