"""Objectives with their data, as a run makes them, without a run."""

import contextlib

import torch

from spanbert_ext.tasks.packed_objective import count_labels, head_loss
from spanbert_ext.training.pretrain import PretrainObjective
from spanbert_ext.training.ranks import ALONE


def pretrain_objective(config, device="cpu", ranks=ALONE) -> PretrainObjective:
    """Pre-training of the settings, with the batches of one rank."""
    objective = PretrainObjective(config)
    objective.read()
    objective.prepare(None, torch.device(device), ranks, contextlib.ExitStack())
    objective.data = objective.build_batches(None)
    return objective


class HeadObjective:
    """Counts and loss of a head on batches, as `PackedObjective` has them."""

    loss_names = ("loss",)

    def __init__(self, data, head):
        self.data, self._head = data, head

    def counts(self, micro_batch):
        return count_labels(micro_batch, self._head)

    def loss(self, model, micro_batch, totals):
        loss = head_loss(model, micro_batch, self._head, totals[0])
        return loss, loss.detach().reshape(1)
