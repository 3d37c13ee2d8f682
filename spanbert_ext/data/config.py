"""Settings of `spanbert prepare`."""

import dataclasses
from typing import Literal

from spanbert_ext.errors import ConfigError

# A smaller vocabulary cannot hold the five special tokens and an alphabet.
MIN_VOCAB_SIZE = 32


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What to read, how to split it into pieces and where to write the corpus.

    Args:
        inputs: Files or directories of text: .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet.
            Directories are read recursively in the order of their names; hidden files and other
            suffixes are passed over.
        output: Directory to create. It appears whole at the end or not at all.
        tokenizer: Hugging Face tokenizer directory, tokenizer.json or vocab.txt. None learns a
            WordPiece vocabulary from the text.
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
            rejects.jsonl and stops only if more than 1 % are faulty. A document ends where a line
            of it is skipped.
        shard_tokens: Start a new token file after the document that reaches this many pieces.
        validation_fraction: Share of the documents held out for validation, in [0, 0.5]; of the
            sequences where there are fewer than 20 documents.
    """

    inputs: list[str]
    output: str
    tokenizer: str | None = None
    vocab_size: int = 28996
    lowercase: bool = False
    min_frequency: int = 2
    documents: Literal["blank_line", "file"] = "blank_line"
    text_field: str = "text"
    max_line_bytes: int = 1 << 26
    on_error: Literal["error", "skip"] = "error"
    shard_tokens: int = 1 << 30
    validation_fraction: float = 0.01

    def validate(self) -> None:
        """Raises ConfigError with one line for every impossible value."""
        faults = []
        if isinstance(self.inputs, str) or not self.inputs:
            faults.append(f"inputs: expected a list of files or directories, got {self.inputs!r}")
        if not self.output:
            faults.append("output: expected the directory to create, got an empty name")
        if self.documents not in ("blank_line", "file"):
            faults.append(f"documents: expected blank_line or file, got {self.documents!r}")
        if self.on_error not in ("error", "skip"):
            faults.append(f"on_error: expected error or skip, got {self.on_error!r}")
        if not self.text_field:
            faults.append("text_field: expected a field name, got an empty one")
        if self.vocab_size < MIN_VOCAB_SIZE:
            faults.append(f"vocab_size: expected at least {MIN_VOCAB_SIZE}, got {self.vocab_size}")
        for name in ("min_frequency", "max_line_bytes", "shard_tokens"):
            if getattr(self, name) < 1:
                faults.append(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.validation_fraction <= 0.5:
            faults.append(f"validation_fraction: expected 0 to 0.5, got {self.validation_fraction}")
        if faults:
            raise ConfigError("\n".join(faults))
