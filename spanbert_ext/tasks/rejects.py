"""What becomes of records that cannot be used: an error, or a list with the reasons."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from spanbert_ext.errors import DataError
from spanbert_ext.files import json_text

logger = logging.getLogger("spanbert_ext")

_EXCERPT = 80  # characters
REJECT_LIMIT = 0.01


@dataclass(frozen=True)
class Reject:
    """One record that was left out.

    Args:
        id: of the record, or its place where it has none.
        where: file and line, or the path inside a JSON file.
        reason: in words.
        excerpt: the start of what is wrong.
    """

    id: str
    where: str
    reason: str
    excerpt: str = ""

    @property
    def name(self) -> str:
        """The id in a message: short, in one line, and nothing that a terminal obeys."""
        short = self.id if len(self.id) <= _EXCERPT else self.id[: _EXCERPT - 3] + "..."
        return short if short.isprintable() else repr(short)

    @property
    def said(self) -> str:
        """Place, record and reason, each once: a record without an id is named by its place, and
        some reasons begin with it."""
        is_place = re.search(rf"(^|\W){re.escape(self.id)}\]?$", self.where)
        who = "" if is_place else f"record {self.name}: "
        return f"{self.where}: {who}{self.reason.removeprefix(f'{self.where}: ')}"


class Rejects:
    """Collects unusable records of one file.

    Args:
        policy: `error` raises at the first one; `skip` leaves them out and lists them.
        limit: with `skip`, the share of rejected records, in [0, 1], above which the file as a
            whole is refused: something else is wrong then. One record may always go, but with 0.
    """

    def __init__(self, policy: Literal["error", "skip"] = "error", limit: float = REJECT_LIMIT):
        self.policy, self.limit = policy, limit
        self.found: list[Reject] = []

    def add(self, id: str, where: str, reason: str, excerpt: str = "") -> None:
        """Note a record, or raise.

        Raises:
            DataError: with the policy `error`; names the record, the place and the reason.
        """
        excerpt = excerpt if len(excerpt) <= _EXCERPT else excerpt[: _EXCERPT - 3] + "..."
        reject = Reject(id, where, reason, excerpt)
        if self.policy == "error":
            shown = f" ({excerpt!r})" if excerpt else ""
            raise DataError(
                f"{reject.said}{shown}. Mend it, or leave such records out with --on_error skip"
            )
        self.found.append(reject)

    def check(self, path: str | Path, accepted: int) -> None:
        """To be called once a file is read.

        Raises:
            DataError: too large a share of it was rejected, or nothing is left.
        """
        total = accepted + len(self.found)
        if accepted and len(self.found) <= max(self.limit > 0, self.limit * total):
            if self.found:
                logger.warning("%s: %d of %d records left out", path, len(self.found), total)
            return
        if not total:
            raise DataError(f"{path}: there is no record in it")
        first = self.found[0]
        raise DataError(
            f"{path}: {len(self.found)} of {total} records cannot be used, more than "
            f"{100 * self.limit:g}% (--reject_limit {self.limit:g}): is it another format? The "
            f"first: {first.said}"
        )


def as_lines(rejects: Iterable[Reject]) -> str:
    """A list of rejects as JSON lines."""
    return "".join(json_text(asdict(reject)) + "\n" for reject in rejects)
