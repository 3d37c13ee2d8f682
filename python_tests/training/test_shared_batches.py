"""How ranks share a batch, without processes: rows, masks, tokens, and what cannot be shared."""

import pytest
import torch
from objective_cases import pretrain_objective
from test_loop import parts_of

from spanbert_ext.errors import ConfigError
from spanbert_ext.training.loop import StopRequest, evaluate
from spanbert_ext.training.ranks import ALONE, Ranks


def objectives_of(config, world):
    return [pretrain_objective(config, ranks=Ranks(rank, world)) for rank in range(world)]


def sequences(objectives, step, on_device=False):
    """(tokens, labels) of every sequence of a step, over all ranks and micro-batches in order."""
    found = []
    for objective in objectives:
        if on_device:
            objective.data.seek(step)
        made = (
            [objective.data.batch_on_device(i) for i in range(objective.data.num_micro_batches)]
            if on_device
            else objective.data.batches(step)
        )
        for micro in made:
            bounds = micro.cu_seqlens.tolist()
            for start, stop in zip(bounds, bounds[1:], strict=False):
                ids = micro.masked.input_ids[start:stop]
                if ids.numel() and bool((ids != 0).any()):  # without padding
                    found.append((ids.tolist(), micro.masked.labels[start:stop].tolist()))
    return found


@pytest.mark.parametrize("resident", ["off", "on"])
def test_ranks_and_accumulation_share_the_same_masked_sequences(tiny, change, resident):
    config = change(tiny, **{"batch.resident": resident})
    expected = sequences(objectives_of(config, 1), 5)
    assert len(expected) >= 8
    for world, micro_rows in ((1, 1), (2, 4), (2, 1), (4, 2), (8, 8)):
        changed = change(config, **{"batch.micro_rows": micro_rows})
        objectives = objectives_of(changed, world)
        assert sequences(objectives, 5) == expected, (world, micro_rows)
        assert {objective.data.num_tokens(5) for objective in objectives} == {
            sum(len(i) for i, _ in expected)
        }
        if resident == "on":
            assert sequences(objectives, 5, on_device=True) == expected, (world, micro_rows)


def test_rows_that_cannot_be_shared_evenly(tiny, change):
    with pytest.raises(ConfigError, match="8 rows cannot be shared evenly by 3 .* take 6 or 9"):
        objectives_of(tiny, 3)
    odd = change(tiny, **{"batch.rows": 12, "batch.micro_rows": 4})
    with pytest.raises(ConfigError, match="4 does not divide the 6 rows"):
        objectives_of(odd, 2)


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_brings_as_many_held_out_batches(tiny, change, world):
    """Together they hold each row's targets once."""
    config = change(tiny, **{"batch.rows": 12, "batch.micro_rows": 2, "validation.rows": 7})
    (alone,) = objectives_of(config, 1)
    wanted = torch.stack([alone.counts(micro) for micro in alone.data.held_out_batches()])
    shares = [
        torch.stack([objective.counts(micro) for micro in objective.data.held_out_batches()])
        for objective in objectives_of(config, world)
    ]
    assert len({len(share) for share in shares}) == 1
    assert torch.equal(torch.stack(shares).sum((0, 1)), wanted.sum(0))


def test_a_part_without_targets_has_no_loss(tiny, change):
    config = change(tiny, **{"batch.rows": 12, "batch.micro_rows": 2, "validation.rows": 2})
    _, model = parts_of(config)
    other = objectives_of(config, 2)[1]
    losses = evaluate(model, other, other.data.held_out_batches(), "fp32")
    assert losses == {"mlm_loss": 0.0, "sbo_loss": 0.0}


def test_a_process_alone_needs_no_group():
    values = torch.tensor([1.0, 2.0])
    assert ALONE.add_up(values) is values
    assert ALONE.largest(3) == 3
    assert ALONE.decide(lambda: {"a": 1}) == {"a": 1}
    assert ALONE.gather(values) == [values]
    assert not StopRequest().requested()


def test_nproc_inside_a_group_is_refused(tiny, change, monkeypatch):
    from spanbert_ext.training.pretrain import pretrain

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="nproc: 2 processes were started already"):
        pretrain(change(tiny, nproc=2))
