"""What the masker, the sentence cutter and the packer need to know of a tokenizer: its ids.

Everything is read from the tokenizer's JSON description, so this module needs neither transformers
nor tokenizers. Which pieces begin a word follows from the kind of tokenizer, not from a look at the
pieces:

* WordPiece: every piece without the prefix `##`; punctuation marks are words of their own.
* byte-level BPE (RoBERTa, ModernBERT): a piece that begins with white space (`Ġ`, `Ċ` ...).
  Punctuation without a space before it continues its word, and so does all text of a script written
  without spaces.
* SentencePiece (Unigram or BPE): a piece that begins with `▁`; likewise for punctuation.
* word level: every piece.

A piece behind a special token begins a word whatever the table says; the masker sees to that. [UNK]
is a word.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spanbert_ext.errors import DataError

# Role -> settings that name its token, then the customary names, in order of preference.
_ROLES = {
    "cls": (("cls_token", "bos_token"), ("[CLS]", "<s>", "<cls>", "<bos>")),
    "sep": (("sep_token", "eos_token"), ("[SEP]", "</s>", "<sep>", "<eos>")),
    "pad": (("pad_token",), ("[PAD]", "<pad>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
    "unk": (("unk_token",), ("[UNK]", "<unk>")),
}
_NAMED = (
    "cls_token",
    "bos_token",
    "sep_token",
    "eos_token",
    "pad_token",
    "mask_token",
    "unk_token",
)


@dataclasses.dataclass(frozen=True, eq=False)
class VocabularyInfo:
    """Ids and word boundaries of a vocabulary.

    Args:
        pieces: [V] the pieces in the order of their ids; "" where an id has none.
        texts: [V] the same without word marks, as text ("Ġthe" -> "the", "##ing" -> "ing").
        word_starts: [V] bool, whether a piece begins a word.
        space_marked: whether word starts carry the space before them, so that an opening quotation
            mark differs from a closing one.
        cls_id, sep_id, pad_id, mask_id: ids of the special tokens (`<s>` and `</s>` count as CLS
        and SEP).
        unk_id: id of the unknown token, an ordinary word; None in vocabularies without one.
        special_ids: ids that are never text, ascending: special tokens without [UNK], and ids
            without a piece.
    """

    pieces: tuple[str, ...]
    texts: tuple[str, ...]
    word_starts: np.ndarray
    space_marked: bool
    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    unk_id: int | None
    special_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        """Number of ids, the highest id plus one."""
        return len(self.pieces)

    @classmethod
    def from_tokenizer(cls, tokenizer) -> VocabularyInfo:
        """Analyse a tokenizer.

        Args:
            tokenizer: a fast tokenizer of transformers, a `tokenizers.Tokenizer`, or the path of a
                tokenizer directory, a tokenizer.json or a vocab.txt.

        Raises:
            DataError: a special token is missing, or the tokenizer does not mark where words begin.
            TypeError: `tokenizer` is none of these.
        """
        if isinstance(tokenizer, (str, os.PathLike)):
            return cls.from_spec(*read_spec(Path(tokenizer)), where=str(tokenizer))
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(backend, "to_str"):
            raise TypeError(
                "tokenizer must be a fast tokenizer of transformers, a tokenizers.Tokenizer or a "
                f"path; got {type(tokenizer).__name__}"
            )
        names = {key: str(value) for key in _NAMED if (value := getattr(tokenizer, key, None))}
        where = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        return cls.from_spec(json.loads(backend.to_str()), names, where=where)

    @classmethod
    def from_spec(cls, spec: dict, names: dict[str, str], where: str) -> VocabularyInfo:
        """Analyse a parsed tokenizer.json; `names` maps settings such as `cls_token` to tokens."""
        ids = _piece_ids(spec)
        size = max(ids.values(), default=-1) + 1
        pieces = [""] * size
        for piece, i in ids.items():
            pieces[i] = piece
        roles = _resolve_roles(ids, names)
        missing = [role for role in ("cls", "sep", "pad", "mask") if roles[role] is None]
        if missing:
            raise DataError(
                f"{where}: the tokenizer has no {', '.join(missing)} token; name it in "
                "tokenizer_config.json or add it to the vocabulary"
            )
        added = {entry["content"]: entry for entry in spec.get("added_tokens") or ()}
        special = {i for i, piece in enumerate(pieces) if not piece}
        special |= {ids[text] for text, entry in added.items() if entry.get("special")}
        special |= {ids[name] for key, name in names.items() if name in ids and key != "unk_token"}
        special |= {roles[role] for role in ("cls", "sep", "pad", "mask")}
        special.discard(roles["unk"])
        marking = _Marking.of(spec, where)
        starts = [piece in added or marking.starts_word(piece) for piece in pieces]
        texts = [piece if piece in added else marking.text(piece) for piece in pieces]
        return cls(
            pieces=tuple(pieces),
            texts=tuple(texts),
            word_starts=np.asarray(starts, dtype=np.bool_),
            space_marked=bool(marking.space_marks),
            cls_id=roles["cls"],
            sep_id=roles["sep"],
            pad_id=roles["pad"],
            mask_id=roles["mask"],
            unk_id=roles["unk"],
            special_ids=tuple(sorted(special)),
        )


def read_spec(path: Path) -> tuple[dict, dict[str, str]]:
    """(parsed tokenizer.json, names of special tokens) of a directory, tokenizer.json or vocab.txt.

    A bare vocab.txt is described as the WordPiece tokenizer that it implies.
    """
    if path.is_dir():
        folder, file = path, path / "tokenizer.json"
        if not file.exists():
            file = path / "vocab.txt"
    else:
        folder, file = path.parent, path
    if not file.is_file():
        raise DataError(f"{path}: no tokenizer here: expected tokenizer.json or vocab.txt")
    names = _special_names(folder) if path.is_dir() else {}
    if file.suffix == ".json":
        spec = read_json(file)
        if not isinstance(spec.get("model"), dict):
            raise DataError(f"{file}: not a tokenizer.json: it has no `model` object")
        return spec, names
    vocab = {piece: i for i, piece in enumerate(read_vocab_lines(file))}
    return {"model": {"type": "WordPiece", "vocab": vocab}}, names


def read_json(path: Path) -> dict:
    """The JSON object in a file; DataError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_vocab_lines(path: Path) -> list[str]:
    """Pieces of a vocab.txt, one a line; DataError for duplicates and blank lines."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}") from None
    if lines[-1] == "":
        lines.pop()
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        piece = line.rstrip("\r")
        if not piece:
            raise DataError(
                f"{path}:{number}: blank line: ids follow line numbers, so none may be empty"
            )
        if piece in seen:
            raise DataError(
                f"{path}:{number}: {piece!r} stands in line {seen[piece]} already; "
                "remove one of them (ids of the lines below change)"
            )
        seen[piece] = number
    return list(seen)


def _special_names(folder: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            for key, value in read_json(folder / file).items():
                if isinstance(value, dict):
                    value = value.get("content")
                if key in _NAMED and isinstance(value, str):
                    names[key] = value
    return names


def _piece_ids(spec: dict) -> dict[str, int]:
    vocab = spec["model"].get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    ids.update((entry["content"], entry["id"]) for entry in spec.get("added_tokens") or ())
    return ids


def _resolve_roles(ids: dict[str, int], names: dict[str, str]) -> dict[str, int | None]:
    roles = {}
    for role, (keys, customary) in _ROLES.items():
        candidates = [names[key] for key in keys if key in names] + list(customary)
        roles[role] = next((ids[token] for token in candidates if token in ids), None)
    return roles


@dataclasses.dataclass(frozen=True)
class _Marking:
    """How pieces show where words begin: a mark before a start, or a prefix before the others."""

    space_marks: str = ""
    prefix: str = ""
    bytes_of: dict[str, int] | None = None

    @classmethod
    def of(cls, spec: dict, where: str) -> _Marking:
        model = spec["model"]
        kind = model.get("type") or _kind_of_untyped(model)
        if kind == "WordPiece":
            return cls(prefix=model.get("continuing_subword_prefix") or "##")
        if kind == "WordLevel":
            return cls()
        parts = [*_components(spec.get("pre_tokenizer")), *_components(spec.get("decoder"))]
        if any(part.get("type") == "ByteLevel" for part in parts):
            bytes_of = {mark: value for value, mark in enumerate(byte_alphabet())}
            spaces = "".join(mark for mark, value in bytes_of.items() if value in b" \t\n\v\f\r")
            return cls(space_marks=spaces, bytes_of=bytes_of)
        for part in parts:
            if part.get("type") == "Metaspace":
                return cls(space_marks=part.get("replacement") or "▁")
        steps = _components(spec.get("normalizer"))
        if any("▁" in (step.get("prepend"), step.get("content")) for step in steps):
            return cls(space_marks="▁")
        if model.get("continuing_subword_prefix"):
            return cls(prefix=model["continuing_subword_prefix"])
        raise DataError(
            f"{where}: this {kind} tokenizer does not mark the beginning of words (no byte-level "
            "or Metaspace step, no continuation prefix), so whole words cannot be masked; use "
            "another tokenizer"
        )

    def starts_word(self, piece: str) -> bool:
        if self.space_marks:
            return piece[:1] in self.space_marks
        return not (self.prefix and piece.startswith(self.prefix))

    def text(self, piece: str) -> str:
        if self.space_marks:
            piece = piece.lstrip(self.space_marks)
        elif self.prefix and piece != self.prefix:
            piece = piece.removeprefix(self.prefix)
        if self.bytes_of is None:
            return piece
        return bytes(self.bytes_of[c] for c in piece if c in self.bytes_of).decode(
            "utf-8", "replace"
        )


def _kind_of_untyped(model: dict) -> str:
    # Files of early tokenizers releases leave the type out.
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _components(node) -> Iterator[dict]:
    """A pre-tokenizer, decoder or normalizer and, for a sequence, its parts."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _components(value)
    elif isinstance(node, list):
        for value in node:
            yield from _components(value)


def byte_alphabet() -> list[str]:
    """[256] the character that stands for each byte in byte-level BPE.

    Visible Latin-1 characters stand for themselves, the other bytes, in order, for U+0100 and
    upwards.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (value for value in range(256) if value not in visible)
    stand_ins = {value: chr(0x100 + i) for i, value in enumerate(others)}
    return [stand_ins.get(value, chr(value)) for value in range(256)]
