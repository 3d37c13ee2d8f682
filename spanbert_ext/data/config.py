"""Settings of `spanbert prepare`."""

import dataclasses
import re
from typing import Literal

from spanbert_ext.errors import ConfigError

# A smaller vocabulary cannot hold the five special tokens and an alphabet.
MIN_VOCAB_SIZE = 32
# Settings that say how the work is done and leave the output as it is.
HOW = (
    "reject_limit",
    "workers",
    "unit_bytes",
    "executor",
    "slurm_partition",
    "slurm_time",
    "verify",
)
_CHOICES = {
    "documents": ("blank_line", "file"),
    "on_error": ("error", "skip"),
    "annotate": ("entity", "phrase", "both", None),
    "executor": ("own", "slurm", "ray"),
}


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What to read, how to split it into pieces and where to write the corpus.

    Args:
        inputs: Files or directories of text: .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet.
            Directories are read recursively in the order of their names; hidden files and other
            suffixes are passed over.
        output: Directory to create. It appears whole at the end or not at all.
        tokenizer: Hugging Face tokenizer directory or hub name, tokenizer.json or vocab.txt. None
            learns a WordPiece vocabulary from the text.
        vocab_size: Largest size of a learned vocabulary; small text may give fewer pieces.
        lowercase: Lower-case and strip accents; for a learned vocabulary or a bare vocab.txt. A
            tokenizer.json has its own rule.
        min_frequency: How often a pair of pieces must occur to be joined in a learned vocabulary.
        documents: What one document is in .txt files: `blank_line` for blocks between blank lines,
            `file` for whole files. Lines inside a document are joined by a space. A .jsonl line or
            .parquet row is always one document.
        text_field: Name of the field (.jsonl) or column (.parquet) that holds the text.
        max_line_bytes: Longest line, or .parquet value, in bytes; a longer one is a fault.
        on_error: What to do with a faulty line or record: `error` stops, `skip` lists it in
            rejects.jsonl and stops only above `reject_limit`. A document ends where a line of it is
            skipped.
        reject_limit: Share of the records, in [0, 1], that `skip` may leave out.
        shard_tokens: Start a new token file after the document that reaches this many pieces.
        validation_fraction: Share of the documents held out for validation, in [0, 0.5]; of the
            sequences where there are fewer than 20 documents.
        annotate: Also write candidate spans for the masking schemes `entity` and `phrase`, or for
            `both`, aligned with the pieces. Numeric entities (dates, amounts ...) are left out.
        annotator: What finds the spans: `module:function`, called with a text and giving (start,
            end, kind) in characters with kind entity or phrase. None takes spaCy.
        annotator_model: Name or directory of the spaCy model.
        workers: Processes that share the work; null for one a core. 1 works in this process. The
            output is the same for any number.
        unit_bytes: Input of one unit of work, about: what a worker takes at a time, and what it
            loses when it is killed. A .gz or .parquet file, and with `documents: file` a .txt
            file, is never divided.
        executor: Who runs the units: this command (`own`), or datatrove as Slurm jobs (`slurm`) or
            on a Ray cluster (`ray`). The output is the same.
        slurm_partition: Where the jobs go; required for `slurm`.
        slurm_time: Time limit of a unit's job.
        verify: Compare every file of the corpus with its digest afterwards. Without inputs nothing
            else is done with the corpus in `output`.
    """

    inputs: list[str] = dataclasses.field(default_factory=list)
    output: str = ""
    tokenizer: str | None = None
    vocab_size: int = 28996
    lowercase: bool = False
    min_frequency: int = 2
    documents: Literal["blank_line", "file"] = "blank_line"
    text_field: str = "text"
    max_line_bytes: int = 1 << 26
    on_error: Literal["error", "skip"] = "error"
    reject_limit: float = 0.01
    shard_tokens: int = 1 << 30
    validation_fraction: float = 0.01
    annotate: Literal["entity", "phrase", "both"] | None = None
    annotator: str | None = None
    annotator_model: str = "en_core_web_sm"
    workers: int | None = None
    unit_bytes: int = 1 << 24
    executor: Literal["own", "slurm", "ray"] = "own"
    slurm_partition: str | None = None
    slurm_time: str = "02:00:00"
    verify: bool = False

    @property
    def annotation_kinds(self) -> tuple[str, ...]:
        """Kinds of candidate spans to write."""
        if self.annotate is None:
            return ()
        return ("entity", "phrase") if self.annotate == "both" else (self.annotate,)

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = []
        if isinstance(self.inputs, str) or not (self.inputs or self.verify):
            faults.append(f"inputs: a value is required: files or directories; got {self.inputs!r}")
        if not self.output:
            faults.append("output: expected the directory to create, got an empty name")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                expected = " or ".join(map(str, allowed))
                faults.append(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        if not self.text_field:
            faults.append("text_field: expected a field name, got an empty one")
        if self.vocab_size < MIN_VOCAB_SIZE:
            faults.append(f"vocab_size: expected at least {MIN_VOCAB_SIZE}, got {self.vocab_size}")
        for name in ("min_frequency", "max_line_bytes", "shard_tokens", "workers", "unit_bytes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                faults.append(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.validation_fraction <= 0.5:
            faults.append(f"validation_fraction: expected 0 to 0.5, got {self.validation_fraction}")
        if not 0 <= self.reject_limit <= 1:
            faults.append(f"reject_limit: expected 0 to 1, got {self.reject_limit}")
        if self.annotator is not None and not re.fullmatch(r"[\w.]+:\w+", self.annotator):
            faults.append(f"annotator: expected module:function, got {self.annotator!r}")
        if self.executor == "slurm" and not self.slurm_partition:
            faults.append("slurm_partition: required for the executor slurm")
        if faults:
            raise ConfigError("\n".join(faults))
