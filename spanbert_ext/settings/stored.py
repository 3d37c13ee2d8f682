"""Settings that another version of the package stored, read as this version's.

A run's state, a fine-tuned model, a corpus and a file of predictions record settings by name. A
setting that did not exist when they were written has the value that does what was done then; one
that has got another name is found through `setting_names.RENAMED`. Torch-free.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from spanbert_ext.errors import ConfigError
from spanbert_ext.settings.build import options
from spanbert_ext.settings.names import renamed


def completed(
    stored: Mapping[str, Any],
    cls: type,
    where: str | Path,
    written_by: str | None = None,
    wanted: Collection[str] | None = None,
    section: str = "",
) -> dict[str, Any]:
    """Stored settings under their present names, with those that are younger than the file.

    Args:
        stored: name -> value.
        cls: the settings class whose names they are; a field's default, or what `settings.added`
            names in its place, completes them.
        where: they stand, for the message.
        written_by: version of the package that wrote them, if it is known.
        wanted: names to complete, some of which need not be settings; default those of `cls`.
        section: what stands before these names on a command line, with its dot.

    Raises:
        ConfigError: a name that this version does not know.
    """
    known = {option.name: option for option in options(cls)}
    wanted = known if wanted is None else wanted
    found = renamed(stored, {*known, *wanted}, section)
    unknown = sorted(found.keys() - known.keys() - set(wanted))
    if unknown:
        writer = f"spanbert_ext {written_by}" if written_by else "another version, or by hand"
        names = ", ".join(section + name for name in unknown)
        raise ConfigError(
            f"{where}: this version of spanbert_ext has no setting {names}; the file was written "
            f"by {writer}"
        )
    younger = [name for name in wanted if name in known and name not in found]
    return {name: known[name].before for name in younger} | found
