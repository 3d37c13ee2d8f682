"""What the setting `corpus` names: one prepared directory, or several with weights.

Several are written `books=3,news=1`: a row in four comes from `news`. Weights are positive numbers;
only their ratio counts. Anything else is the name of one directory, so paths may hold commas and
equals signs; one that reads like a list of weights is named with a slash at its end. Free of torch
and numpy: the command line checks it before anything is loaded.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from spanbert_ext.errors import ConfigError

FORM = "DIRECTORY=WEIGHT,DIRECTORY=WEIGHT"
# The pattern of a mixture holds as many places as its weights add up to.
MAX_WEIGHTS = 1 << 20

_MEMBER = re.compile(r"(.+?)=(\d+(?:\.\d*)?|\.\d+)(?:,|$)", re.DOTALL)


@dataclass(frozen=True)
class ChosenCorpus:
    """A prepared directory and its weight.

    Args:
        path: the directory.
        weight: of its rows; the weights of a mixture have no common divisor.
    """

    path: str
    weight: int


def parse_corpora(text: str) -> tuple[ChosenCorpus, ...]:
    """The corpora that `text` names; one where it is no list of at least two with weights.

    Raises:
        ConfigError: a weight of 0, a directory named twice, or weights without a small ratio of
            whole numbers.
    """
    named = _members(text)
    if len(named) < 2:
        return (ChosenCorpus(text, 1),)
    paths = [path for path, _ in named]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(f"corpus: {twice} is named twice in {text!r}; add up its weights")
    nothing = next((path for path, weight in named if weight == 0), None)
    if nothing is not None:
        raise ConfigError(f"corpus: {nothing} has weight 0 in {text!r}; leave it out")
    common = math.lcm(*(weight.denominator for _, weight in named))
    whole = [int(weight * common) for _, weight in named]
    whole = [weight // math.gcd(*whole) for weight in whole]
    if sum(whole) > MAX_WEIGHTS:
        raise ConfigError(
            f"corpus: the weights of {text!r} are as {':'.join(map(str, whole))}, which add up to "
            f"more than {MAX_WEIGHTS}; round them"
        )
    return tuple(map(ChosenCorpus, paths, whole))


def _members(text: str) -> list[tuple[str, Fraction]]:
    """(directory, weight) of every member; empty where `text` is no such list."""
    found, place = [], 0
    while place < len(text):
        member = _MEMBER.match(text, place)
        if member is None:
            return []
        found.append((member[1].strip(), Fraction(member[2])))
        place = member.end()
    return found
