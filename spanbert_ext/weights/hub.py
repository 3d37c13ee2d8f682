"""Names on the Hugging Face hub: the files they stand for, in the local cache or downloaded.

A name is looked up in the cache first and on the network only if it is not there. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from spanbert_ext.errors import ConfigError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    # Of tokenizers that transformers makes fast ones of.
    "vocab.json",
    "merges.txt",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# Beside the weights also what a fine-tuning of ours stores about its task.
MODEL_FILES = (
    "config.json",
    "model*.safetensors",
    "*.index.json",
    "spanbert_task.json",
    *TOKENIZER_FILES,
)
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def is_name(name: str) -> bool:
    """Whether it may be a name on the hub: no path that is there, and no path by its form."""
    return _NAME.fullmatch(name) is not None and not Path(name).exists()


def find(
    name: str,
    patterns: Sequence[Sequence[str]],
    is_whole: Callable[[Path], bool],
    what: str,
    wanted: str,
) -> Path:
    """The directory of a name's files.

    Args:
        patterns: of files; the second ones are asked for where the first do not suffice.
        is_whole: whether a directory has what is needed.
        what: it should be, for the message, as in "the model's directory".
        wanted: files, as in "it has no ...".

    Raises:
        ConfigError: there is no such name, or not what is needed under it.
    """
    if not is_name(name):
        raise ConfigError(f"{name}: there is no such file or directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    for own in patterns:
        for offline in (True, False):
            try:
                folder = Path(
                    snapshot_download(name, allow_patterns=list(own), local_files_only=offline)
                )
            except (OSError, ValueError, HTTPError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                continue
            if is_whole(folder):
                return folder
            reason = f"it has no {wanted}"
    raise ConfigError(
        f"{name}: no such file or directory here, and as a name on the Hugging Face hub it cannot "
        f"be had ({reason}). Check the name; without a network, copy {what} to this machine and "
        "name that"
    )


def tokenizer_folder(name: str) -> Path:
    """The directory of a name's tokenizer; raises ConfigError as `find`."""
    return find(
        name,
        [TOKENIZER_FILES],
        lambda folder: any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")),
        "the tokenizer's directory",
        "tokenizer.json or vocab.txt",
    )
