"""Batches without sample ids: new draws in every call, in every worker, in every epoch."""

import copy
import pickle

import pytest
import torch
from strategies import assert_same_batch, make_masker, rewound, word_text
from torch.utils.data import DataLoader

from spanbert_ext import SpanMasker

IDS = word_text(4 * 200, seed=1).view(4, 200)


def test_every_call_takes_the_ids_behind_those_of_the_call_before(backend):
    masker, other = make_masker(seed=3), make_masker(seed=3)
    for first in (0, 4, 8):
        assert masker.next_sample_id == first
        given = torch.arange(first, first + 4)
        assert_same_batch(masker(IDS, epoch=2), other(IDS, sample_ids=given, epoch=2))
    packed = masker.packed(IDS.view(-1), torch.tensor([0, 200, 500, 800]))
    expected = other.packed(IDS.view(-1), torch.tensor([0, 200, 500, 800]), torch.arange(12, 15))
    assert_same_batch(packed, expected)
    assert (masker.next_sample_id, other.next_sample_id) == (15, 0)


def test_one_text_has_another_mask_in_every_batch(backend):
    masker = make_masker()
    masks = torch.cat([masker(IDS[:1]).labels for _ in range(50)])
    assert torch.unique(masks, dim=0).shape[0] == 50


def test_the_count_can_be_set_and_goes_with_copies(backend):
    masker = make_masker()
    masker.next_sample_id = 2**62 - 1
    copies = copy.deepcopy(masker), pickle.loads(pickle.dumps(masker))
    batch = masker(IDS)
    assert masker.next_sample_id == 2**62 + 3
    for twin in copies:
        assert twin.next_sample_id == 2**62 - 1
        assert_same_batch(twin(IDS), batch)
    for bad in (-1, 2**62):
        with pytest.raises(ValueError, match=r"next sample id.*2\*\*62"):
            masker.next_sample_id = bad


def test_a_masker_pickled_before_there_was_a_count(backend):
    masker = make_masker()
    state = {k: v for k, v in masker.__getstate__().items() if k != "_sample_ids"}
    old = object.__new__(SpanMasker)
    old.__setstate__(state)
    assert_same_batch(old(IDS), masker(IDS))


def test_inference_mode_leaves_a_count_that_goes_on(backend):
    with torch.inference_mode():
        masker = make_masker()
        first = masker(IDS)
    second = masker(IDS)
    assert masker.next_sample_id == 8
    assert_same_batch(first, rewound(masker)(IDS))
    assert not torch.equal(first.labels, second.labels)


class Collate:
    def __init__(self):
        self.masker = make_masker()

    def __call__(self, rows):
        self.masker(torch.stack(rows))
        return rows[0], self.masker.next_sample_id


class CollateWithIdsSetInTheWorker(Collate):
    def __call__(self, rows):
        self.masker.next_sample_id = 70
        return super().__call__(rows)


def ids_of_epochs(epochs: int, start: str, persistent: bool, collate) -> list[int]:
    """Id behind every batch of two rows, of two workers."""
    rows = list(IDS) * 2
    loader = DataLoader(
        rows,
        batch_size=2,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context=start,
        persistent_workers=persistent,
    )
    return [following for _ in range(epochs) for _, following in loader]


@pytest.mark.parametrize("start, persistent", [("fork", False), ("fork", True)])
def test_workers_and_epochs_have_ids_of_their_own(start, persistent):
    collate = Collate()
    collate.masker.next_sample_id = 12345  # counts in this process only
    torch.manual_seed(4)
    found = ids_of_epochs(2, start, persistent, collate)
    used = [i - back for i in found for back in (1, 2)]
    assert len(set(used)) == len(used) == 16
    assert collate.masker.next_sample_id == 12345
    torch.manual_seed(4)
    assert ids_of_epochs(2, start, persistent, Collate()) == found  # the loader's seed decides


def test_ids_set_in_a_worker_count():
    assert ids_of_epochs(1, "fork", False, CollateWithIdsSetInTheWorker()) == [72] * 4


def test_a_captured_step_must_have_sample_ids(monkeypatch):
    """Its replays would repeat the draws of the capture."""
    counter = make_masker()._sample_ids
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="sample_ids is missing while a CUDA graph"):
        counter.take(4, torch.device("cuda"))


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_call_goes_on_too(force_backend, fullgraph):
    from torch._dynamo.testing import CompileCounter

    force_backend("native")
    torch._dynamo.reset()
    counter, masker, other = CompileCounter(), make_masker(), make_masker()
    compiled = torch.compile(lambda x: masker(x).labels, backend=counter, fullgraph=fullgraph)
    for _ in range(6):
        assert torch.equal(compiled(IDS), other(IDS).labels)
    assert counter.frame_count <= 2
