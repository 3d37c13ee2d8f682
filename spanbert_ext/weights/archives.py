"""Files made by strangers: archives unpacked within bounds, pickles read without running them."""

from __future__ import annotations

import argparse
import gzip
import pickle
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import torch

from spanbert_ext.errors import DataError, StorageError

# The largest original archive holds one file of about 4 GB (weights and two moments in fp32).
MAX_MEMBERS = 100
MAX_BYTES = 16 * 10**9
# Tar reads headers whole: a long name or an extended header of this size is an attack.
_MAX_HEADER = 1 << 24


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar or .tar.gz of regular files.

    Args:
        folder: an empty directory; nothing is written outside it.

    Raises:
        DataError: a member is a link or a device, its path leads out of the folder, there are too
            many or they are too large, or the archive is damaged.
        StorageError: there is no room to unpack it.
    """
    try:
        with archive.open("rb") as file:
            opener = gzip.open if file.read(2) == b"\x1f\x8b" else open
        with (
            opener(archive, "rb") as stream,
            tarfile.open(fileobj=_ShortReads(stream), mode="r:") as tar,
        ):
            _extract(archive, tar, folder)
    except tarfile.FilterError as error:
        raise DataError(f"{archive}: refused: {error}; nothing outside was written") from error
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
        raise DataError(f"{archive}: not a whole tar archive: {error}; fetch it again") from error
    except OSError as error:
        raise StorageError(f"{archive} could not be unpacked: {error}") from error


def _extract(archive: Path, tar: tarfile.TarFile, folder: Path) -> None:
    room = min(MAX_BYTES, shutil.disk_usage(folder).free)
    for count, member in enumerate(tar, 1):
        if count > MAX_MEMBERS:
            raise DataError(f"{archive}: refused: more than {MAX_MEMBERS} members")
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise DataError(
                f"{archive}: refused: member {member.name!r} is neither a plain file nor a "
                "directory; unpack it yourself if you trust it, and name the directory"
            )
        if Path(member.name).is_absolute():
            raise DataError(f"{archive}: refused: member {member.name!r} has an absolute path")
        room -= member.size
        if room < 0:
            free = shutil.disk_usage(folder).free / 1e9
            raise DataError(
                f"{archive}: refused at member {member.name!r} of {member.size / 1e9:.1f} GB: at "
                f"most {MAX_BYTES / 1e9:.0f} GB are unpacked, and {folder} has {free:.1f} GB free "
                "(TMPDIR chooses another place)"
            )
        tar.extract(member, folder, filter="data")


class _ShortReads:
    """A stream that refuses reads as long as only a hostile header asks for."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._stream.read(size)


def read_tensors(path: Path, key: str | None = None) -> dict[str, torch.Tensor]:
    """Tensors by name from a file of `torch.save`, on the CPU.

    Of classes only argparse.Namespace is rebuilt, in which fairseq keeps its options.

    Args:
        key: where in the file's dict they are; None: it is nothing else.

    Raises:
        DataError: the file holds other objects (nothing of it is run), is damaged, or has no
            tensors there.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: {pickle_fault(error)}") from error
    except (EOFError, RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: not a whole file of torch.save: {error}") from error
    if key is not None and isinstance(value, dict):
        value = value.get(key)
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    ):
        place = f"under {key!r}" if key else "in it"
        raise DataError(f"{path}: a dict of tensors by name is expected {place}")
    return value


def pickle_fault(error: pickle.UnpicklingError) -> str:
    """Why `torch.load` refused a pickle, and what to do, without its advice to run it after all."""
    found = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line]
    reason = f" ({found[0].rstrip('.')})" if found else ""
    return (
        f"refused: the file is damaged or holds code besides tensors{reason}; none of it was run. "
        "If you trust where it comes from, load it there and save its tensors alone, best with "
        "safetensors"
    )
