"""Training with spoiled losses: the gradient of chosen batches becomes what a fault would make it.

As a script, the command with `SPOIL=batch:count:rank:factor`.
"""

import os
import sys

from spanbert_ext.training import loop
from spanbert_ext.training.pretrain import PretrainObjective


def spoil(patch, batches, factor):
    """Multiply what is differentiated in the `batches` by `factor`.

    Args:
        patch: as `setattr`.
        batches: numbers of batches; one that was jumped over stays away.
    """
    host_step, own_loss = loop.HostStep.__call__, PretrainObjective.loss
    batch = -1

    def remember(self, step):
        nonlocal batch
        batch = step + self._objective.data.shift
        return host_step(self, step)

    def spoiled(self, *arguments):
        value, parts = own_loss(self, *arguments)
        return value * (factor if batch in batches else 1.0), parts

    patch(loop.HostStep, "__call__", remember)
    patch(PretrainObjective, "loss", spoiled)


if __name__ == "__main__":
    from spanbert_ext.cli.command import main

    first, count, rank, factor = os.environ["SPOIL"].split(":")
    if os.environ.get("RANK", "0") == rank:
        spoil(setattr, range(int(first), int(first) + int(count)), float(factor))
    sys.exit(main())
