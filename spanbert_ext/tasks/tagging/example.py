"""What is tagged: words with their sentences, and the text they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spanbert_ext.errors import DataError

# Takes a text apart: [start, end) of each word in characters, ascending, none empty or overlapping.
WordSplitter = Callable[[str], Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class TaggedExample:
    """A document or a part of one, a text, or a list of words.

    Args:
        id: file and line of its first word, or what a record gave.
        words: in order.
        tags: gold tags in BIO, whatever scheme the file had; None where there are none.
        sentences: number of the first word of each sentence, ascending, from 0. No entity crosses
            into another.
        text: where the words come from; None where only words were given.
        offsets: [start, end) of each word in `text`, in characters.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    sentences: tuple[int, ...] = (0,)
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] | None = None

    def sentence_ranges(self) -> Iterator[tuple[int, int]]:
        """First word and the one behind the last, of every sentence."""
        return zip(self.sentences, (*self.sentences[1:], len(self.words)), strict=True)


def text_example(id: str, text: str, split: WordSplitter) -> TaggedExample:
    """The example of a raw text, one sentence from the model's point of view.

    Raises:
        DataError: the splitter gave ranges that are no words of this text.
    """
    offsets = tuple((int(start), int(end)) for start, end in split(text))
    done = 0
    for number, (start, end) in enumerate(offsets):
        if not done <= start < end <= len(text):
            raise DataError(
                f"{id}: word {number} of the word splitter is [{start}, {end}), expected a range "
                f"that is not empty, begins at {done} or later and ends by {len(text)}"
            )
        done = end
    words = tuple(text[start:end] for start, end in offsets)
    return TaggedExample(id, words, text=text, offsets=offsets)
