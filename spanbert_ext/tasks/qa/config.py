"""Settings of question answering. Torch-free: `spanbert finetune squad --help` reads nothing else.

Defaults are those of the SpanBERT question answering scripts, but for what a field says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spanbert_ext.tasks.config import TaskOptions

_SHORTEST = 16  # pieces: special tokens, some of a question and some of a context


@dataclass(frozen=True)
class QAOptions(TaskOptions):
    """How questions and contexts become sequences, and scores become answers.

    Args:
        length: pieces of a sequence, special tokens included, at least 16 and at most the
            model's positions; the paper used 512.
        stride: pieces from the start of a window of the context to the start of the next, the
            paper's doc_stride; one that would leave pieces out is shortened to the window.
        overlap: pieces that consecutive windows share, instead of `stride`; what Hugging Face
            tokenizers call stride.
        max_question: pieces of the question that are read; fewer where the context would have less
            than a quarter of the sequence.
        max_answer: pieces of the longest answer.
        n_best: best starts and best ends of a window that are paired, and answers that are kept:
            probabilities are among these.
        top_k: answers that are written for a question; 1 writes the best one alone.
        half: which half of an MRQA development file is evaluated: there is no public test set, so
            the paper split it. A question's half is a hash of its text and its context; files
            whose header says train are never split.
    """

    length: int = 384
    stride: int = 128
    overlap: int | None = None
    max_question: int = 64
    max_answer: int = 30
    n_best: int = 20
    top_k: int = 1
    half: Literal["all", "dev", "test"] = "all"

    def faults(self) -> list[str]:
        """One line for each impossible value."""
        faults = [
            f"qa.{name}: must be at least {least}; got {getattr(self, name)}"
            for name, least in (
                ("length", _SHORTEST),
                ("stride", 1),
                ("max_question", 1),
                ("max_answer", 1),
                ("n_best", 1),
                ("top_k", 1),
            )
            if getattr(self, name) < least
        ]
        if self.overlap is not None and not faults:
            most = self.least_room() - 1
            if not 0 <= self.overlap <= most:
                faults.append(
                    f"qa.overlap: must lie in [0, {most}], below what qa.length {self.length} and "
                    f"qa.max_question {self.max_question} leave for the context; got {self.overlap}"
                )
        return faults

    def least_room(self) -> int:
        """Pieces of the context that a window holds with the longest question."""
        specials = 4  # RoBERTa's, BERT has one less
        return max(self.length - self.max_question - specials, self.length // 4)
