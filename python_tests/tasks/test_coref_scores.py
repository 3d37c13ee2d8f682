"""Every score of the coreference model against the plain one, and the parts against what was worked
out by hand."""

import math

import coref_reference
import numpy as np
import pytest
import torch

from spanbert_ext.tasks.coref.config import CorefModelOptions
from spanbert_ext.tasks.coref.decode import link_clusters
from spanbert_ext.tasks.coref.model import networks, scoring, spans
from spanbert_ext.tasks.coref.model.coreference import CorefHead, SpanBertForCoreference
from spanbert_ext.tasks.coref.model.spans import candidate_spans, head_attention

HIDDEN = 7
# Three segments with specials; sentence 2 is cut by a border and goes on in the next segment.
SENTENCES = [
    -1,
    0,
    0,
    0,
    1,
    1,
    1,
    1,
    2,
    2,
    -1,
    -1,
    2,
    2,
    2,
    3,
    3,
    3,
    3,
    3,
    -1,
    -1,
    4,
    4,
    5,
    5,
    5,
    -1,
]
SEGMENTS = [0] * 11 + [1] * 10 + [2] * 7
SPEAKERS = [0, 1, 1, 1, 2, 2, 2, 2, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 2, 1, 1, 1, 0]
GOLD = {(1, 1): 0, (4, 5): 0, (12, 14): 0, (8, 9): 1, (22, 22): 1, (2, 3): 2, (15, 25): 3}


def options(**changes) -> CorefModelOptions:
    fields = {
        "max_span_width": 4,
        "ffnn_size": 5,
        "feature_size": 3,
        "max_antecedents": 6,
        "genres": ["nw", "bc"],
        "max_training_segments": 2,
        "dropout": 0.0,
    }
    return CorefModelOptions(**{**fields, **changes})


def make_head(chosen: CorefModelOptions) -> CorefHead:
    torch.manual_seed(3)
    head = CorefHead(HIDDEN, chosen).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return head


class Headless:
    """A model of a head and hidden states, with the methods behind the encoder."""

    resolve = SpanBertForCoreference._resolve

    def __init__(self, head, chosen):
        self.coref, self.options = head, chosen


def run(head, chosen, hidden, gold=GOLD):
    """Our output for hidden states."""
    sentence_map = torch.tensor(SENTENCES)
    candidates = candidate_spans(sentence_map, chosen.max_span_width)
    spans_, clusters = zip(*gold.items(), strict=True)
    mentions = (*(torch.tensor(column) for column in zip(*spans_, strict=True)),)
    mentions = (*mentions, torch.tensor(clusters))
    return Headless(head, chosen).resolve(
        hidden, torch.tensor(SEGMENTS), candidates, torch.tensor(SPEAKERS), 2, mentions
    )


def states() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(len(SENTENCES), HIDDEN, dtype=torch.float64, generator=generator)


@pytest.fixture(params=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    if request.param == "many chunks":
        for module in (spans, scoring):
            monkeypatch.setattr(module, "CHUNK_NUMBERS", 1)
        monkeypatch.setattr(scoring, "_COARSE_NUMBERS", 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"singletons": True},
        {"coref_depth": 1, "speakers": False, "genres": None},
        {"coref_depth": 3, "max_antecedents": 2, "span_ratio": 0.7},
        {"max_span_width": 1, "max_antecedents": 500},
        {"max_span_width": 30, "span_ratio": 9.0, "singletons": True, "max_antecedents": 3},
        {"max_spans": 1},
    ],
)
def test_values_and_gradients_are_the_plain_ones(chunks, changes):
    chosen = options(**changes)
    head = make_head(chosen)
    hidden = states().requires_grad_()
    ours = run(head, chosen, hidden)
    plain = coref_reference.score_document(head, chosen, hidden, SENTENCES, SPEAKERS, SEGMENTS, 2)

    kept = [plain.spans[place] for place in plain.kept]
    assert list(zip(ours.starts.tolist(), ours.ends.tolist(), strict=True)) == kept
    assert_close(ours.mention_scores, plain.mention_scores[plain.kept])
    for row, own in enumerate(plain.antecedents):
        count = len(own)
        assert ours.antecedents[row].tolist() == own + [-1] * (ours.antecedents.shape[1] - count)
        assert_close(ours.antecedent_scores[row, : count + 1], plain.scores[row])
        assert bool((ours.antecedent_scores[row, count + 1 :] == -math.inf).all())
    loss = coref_reference.document_loss(plain, GOLD, chosen.singletons)
    assert_close(ours.loss, loss)
    loss = loss + 0 * hidden.sum()  # that of a single span is a constant

    leaves = {"hidden": hidden, **dict(head.named_parameters())}
    gradients = torch.autograd.grad(ours.loss, leaves.values(), allow_unused=True)
    expected = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    for (name, leaf), one, other in zip(leaves.items(), gradients, expected, strict=True):
        assert one is not None, f"{name} has no gradient"
        assert_close(one, torch.zeros_like(leaf) if other is None else other, name)


def assert_close(one, other, message=None):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=message)


def test_the_vectors_are_the_plain_ones():
    chosen = options()
    head, hidden = make_head(chosen), states()
    plain = coref_reference.score_document(head, chosen, hidden, SENTENCES, SPEAKERS, SEGMENTS, 2)
    starts, ends = (
        torch.tensor(c) for c in zip(*[plain.spans[p] for p in plain.kept], strict=True)
    )
    mentions = head.mentions
    features = mentions.width_features(len(SENTENCES), chosen.max_span_width)
    vectors = mentions.represent(
        hidden, mentions.token_scores(hidden), features, starts, ends - starts
    )
    assert_close(vectors, plain.vectors)


@pytest.mark.parametrize("changes", [{}, {"coref_depth": 3, "singletons": True}])
def test_dropout_is_drawn_alike_when_chunks_are_computed_again(chunks, changes):
    """The derivative along a direction, with the same draws, equals the gradient's."""
    chosen = options(dropout=0.4, **changes)
    head = make_head(chosen).train()
    hidden = states().requires_grad_()
    leaves = [hidden, *head.parameters()]

    def loss():
        torch.manual_seed(11)
        return run(head, chosen, hidden).loss

    value = loss()
    gradients = torch.autograd.grad(value, leaves)
    assert float(value.detach()) == float(loss().detach())
    generator = torch.Generator().manual_seed(6)
    ways = [torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator) for leaf in leaves]
    expected = sum(float((g * way).sum()) for g, way in zip(gradients, ways, strict=True))
    step, ends = 1e-6, []
    with torch.no_grad():
        for factor in (step, -2 * step):
            for leaf, way in zip(leaves, ways, strict=True):
                leaf.add_(way, alpha=factor)
            ends.append(float(loss()))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-5)


def test_dropout_reaches_every_feature():
    chosen = options(dropout=0.5)
    head = make_head(chosen).train()
    torch.manual_seed(0)
    features = head.mentions.width_features(200, 4)
    kept = (features != 0).double()
    assert features.shape == (200, 4, 3)
    assert bool(((features == 0) | (features == 2 * head.mentions.width_embedding.weight)).all())
    # 2400 draws: six standard deviations are 0.061.
    assert abs(float(kept.mean()) - 0.5) < 0.061
    head.eval()
    assert head.mentions.width_features(200, 4).shape == (1, 4, 3)


def test_candidates_by_hand():
    found = candidate_spans(torch.tensor([-1, 0, 0, 1, -1, -1, 1, 1, 1, -1]), 2)
    pairs = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    # Sentence 1 is interrupted: no span joins its parts, none holds a special token.
    assert pairs == [(1, 1), (1, 2), (2, 2), (3, 3), (6, 6), (6, 7), (7, 7), (7, 8), (8, 8)]
    assert found.window == 2
    assert candidate_spans(torch.tensor([-1, 0, -1]), 30).window == 1
    for nothing in ([], [-1], [-1, -1]):
        none = candidate_spans(torch.tensor(nothing, dtype=torch.int64), 30)
        assert none.window == 0 and none.starts.numel() == 0


def test_head_attention_by_hand():
    """Scores ln 1, ln 3, ln 4: shares of 1, 3 and 4 among the tokens of the span."""
    scores = torch.tensor([[0.0, math.log(3), math.log(4)]], dtype=torch.float64)
    expected = [[1, 0, 0], [0.25, 0.75, 0], [0.125, 0.375, 0.5]]
    assert_close(head_attention(scores)[0], torch.tensor(expected, dtype=torch.float64))


def test_head_attention_where_one_token_outshines_the_others():
    """Each span has its own maximum: those without the great score keep their shares."""
    attention = head_attention(torch.tensor([[0.0, 0.0, 1e4]]))[0]
    assert attention.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]


def test_buckets_by_hand():
    distances = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 63, 64, 3899])
    expected = [0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert scoring.distance_bucket(distances).tolist() == expected
    assert [coref_reference._bucket(int(d)) for d in distances] == expected


def test_nothing_is_claimed_about_unknown_speakers():
    one, other = torch.tensor([1, 1, 0, 1, 0]), torch.tensor([1, 2, 1, 0, 0])
    assert scoring.speaker_relation(one, other).tolist() == [1, 0, 2, 2, 2]


def test_gold_clusters_of_spans():
    starts, ends = torch.tensor([0, 0, 1, 4]), torch.tensor([0, 1, 1, 4])
    gold = {
        "gold_starts": torch.tensor([1, 0, 0, -1, 4, 0]),
        "gold_ends": torch.tensor([1, 1, 1, 4, 9, 5]),
        "gold_clusters": torch.tensor([7, 3, 8, 1, 1, 1]),
    }
    assert scoring.clusters_of(starts, ends, **gold, length=5).tolist() == [-1, 3, 7, -1]
    none = {name: values[:0] for name, values in gold.items()}
    assert scoring.clusters_of(starts, ends, **none, length=5).tolist() == [-1] * 4


def test_loss_by_hand():
    """Span 1 has two antecedents' worth of room and no right one, span 2 a right one of two."""
    low = -math.inf
    scores = torch.tensor(
        [[0, low, low], [0, math.log(3), low], [0, math.log(2), math.log(5)]], dtype=torch.float64
    )
    antecedents = torch.tensor([[-1, -1], [0, -1], [1, 0]])
    loss = scoring.marginal_loss(scores, antecedents, torch.tensor([4, -1, 4]))
    assert float(loss) == pytest.approx(math.log(4) + math.log(8 / 5))
    # Without clusters, that there is no antecedent is right; -1 is no cluster.
    loss = scoring.marginal_loss(scores, antecedents, torch.tensor([-1, -1, -1]))
    assert float(loss) == pytest.approx(math.log(4) + math.log(8))


def test_mention_loss_by_hand():
    """ln 3 is a probability of 3/4: a kept mention, a kept span that is none, a lost mention."""
    ln3 = math.log(3)
    scores = torch.tensor([ln3, ln3, -ln3, 50.0], dtype=torch.float64)
    gold = torch.tensor([True, False, True, False])
    loss = scoring.mention_loss(scores, gold, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(math.log(4 / 3) + math.log(4) + math.log(4))


def test_linking_by_hand():
    starts, ends = np.array([1, 2, 4, 6, 8, 9]), np.array([1, 3, 4, 7, 8, 9])
    antecedents = np.array([[-1, -1], [0, -1], [1, 0], [2, 1], [0, 3], [3, 4]])
    low = -np.inf
    scores = np.array([[0, low, low], [0, -1, low], [0, 2, 3], [0, -1, 1], [0, 0, 0], [0, 9, 10.0]])
    clusters = link_clusters(starts, ends, antecedents, scores)
    assert clusters == [[(1, 1), (4, 4)], [(2, 3), (6, 7)], [(8, 8), (9, 9)]]
    mentions = np.array([5, 5, 5, 5, 5, 5.0])
    assert link_clusters(starts, ends, antecedents, scores, mentions) == clusters
    alone = scores[:, :1]
    assert link_clusters(starts, ends, antecedents[:, :0], alone) == []
    mentions = np.array([0, 1, -1, 0.5, -2, 0])
    found = link_clusters(starts, ends, antecedents[:, :0], alone, mentions)
    assert found == [[(2, 3)], [(6, 7)]]
    nothing = np.zeros(0, dtype=np.int64)
    assert link_clusters(nothing, nothing, antecedents[:0], scores[:0], mentions[:0]) == []


def test_a_score_network_in_fp32_under_autocast():
    network = networks.ScoreNetwork(8, 16, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.inner(torch.ones(3, 8)).dtype == torch.bfloat16
        assert network(torch.ones(3, 8)).dtype == torch.float32
