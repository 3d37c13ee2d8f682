"""What the tests of coreference share: documents of any shape, a tokenizer that spells words."""

import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spanbert_ext.tasks.coref.data import Document, sorted_clusters
from spanbert_ext.tasks.coref.features import segment

WORDS = st.one_of(
    st.sampled_from(
        ["the", "cat", "it", "unbelievable", "#", "(1)", "-", "[SEP]", "[CLS]", "\x01"]
    ),
    st.text("abcé漢\u0301\x02.,'#|()", min_size=1, max_size=6),
)


@st.composite
def documents(draw, most=30):
    """Any clusters: nested, crossing and touching mentions, singletons, none."""
    words = draw(st.lists(WORDS, min_size=1, max_size=most))
    breaks = draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
    numbers = np.cumsum([0, *breaks[1:]]).tolist()
    last = len(words) - 1
    pairs = st.tuples(st.integers(0, last), st.integers(0, 4)).map(
        lambda pair: (pair[0], min(last, pair[0] + pair[1]))
    )
    spans = draw(st.lists(pairs, max_size=12, unique=True))
    owners = draw(st.lists(st.integers(0, 3), min_size=len(spans), max_size=len(spans)))
    groups = {}
    for span, owner in zip(spans, owners, strict=True):
        groups.setdefault(owner, []).append(span)
    who = st.lists(
        st.sampled_from([None, "A", "B b", "C", "D"]), min_size=len(words), max_size=len(words)
    )
    speakers = draw(st.one_of(st.none(), who))
    return Document(
        draw(st.sampled_from(["d_0", "nw/x/00/y_0012_3", "a b_10", "ü_2"])),
        tuple(words),
        tuple(numbers),
        tuple(speakers) if speakers and any(speakers) else None,
        clusters=sorted_clusters(groups.values())[0],
    )


def text_file(folder, text, name="x.conll"):
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNK, CLS, SEP = 1, 2, 3


def make_tokenizer():
    """WordPiece that knows a few words and spells the rest."""
    signs = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789é.,'#|()[]-")
    pieces = [*SPECIALS, *signs, *("##" + sign for sign in signs), "the", "cat", "un", "##able"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


TOKENIZER = make_tokenizer()


def cut(document, **options):
    (found,) = segment([document], TOKENIZER, **options)
    return found


def pieces(found):
    return TOKENIZER.convert_ids_to_tokens(found.tokens.tolist())


def record_of(segmented, tokenizer) -> dict:
    """A segmented document in the layout of the original SpanBERT coreference, with the clusters of
    its gold mentions."""
    document = segmented.document
    bounds = segmented.cu_seqlens
    special = segmented.word_of_piece < 0
    pieces = tokenizer.convert_ids_to_tokens(segmented.tokens.tolist())
    words = segmented.word_of_piece
    # Both specials carry the word before them, the first of all its own.
    words = np.maximum(np.maximum.accumulate(words), words[1])
    words[0] = words[1]
    # And both the sentence of the piece behind them, the last of all the number after the last.
    behind = segmented.sentence_map[-2] + 1
    sentences = np.where(special, behind, segmented.sentence_map)
    sentences = np.minimum.accumulate(sentences[::-1])[::-1]
    said = document.speakers or (None,) * len(document.words)
    speakers = ["[SPL]" if w < 0 else said[w] or "" for w in segmented.word_of_piece]
    clusters: dict[int, list[list[int]]] = {}
    for start, end, number in zip(
        segmented.gold_starts, segmented.gold_ends, segmented.gold_clusters, strict=True
    ):
        clusters.setdefault(int(number), []).append([int(start), int(end)])

    def rows(flat: list[str]) -> list[list[str]]:
        return [list(flat[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    return {
        "doc_key": document.id,
        "sentences": rows(pieces),
        "speakers": rows(speakers),
        "constituents": [],
        "ner": [],
        "clusters": list(clusters.values()),
        "sentence_map": sentences.tolist(),
        "subtoken_map": words.tolist(),
        "pronouns": [],
    }
