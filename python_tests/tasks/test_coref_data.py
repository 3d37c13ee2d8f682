"""Coreference files, documents and segments."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spanbert_ext.errors import ConfigError, DataError, StorageError
from spanbert_ext.tasks.coref import conll, jsonlines
from spanbert_ext.tasks.coref.documents import (
    Document,
    counts,
    sorted_clusters,
    without_singletons,
)
from spanbert_ext.tasks.coref.segments import segment, window
from spanbert_ext.tasks.rejects import Rejects

ONTONOTES = """#begin document (nw/xinhua/00/x_0001); part 003
nw/xinhua/00/x_0001   3   0    Ann   NNP  (TOP(S(NP*  -  -  -  Ann_Lee  *  (ARG0*  (1|(2)
nw/xinhua/00/x_0001   3   1     's   POS            *)  -  -  -  Ann_Lee  *       *)  1)
nw/xinhua/00/x_0001   3   2     /.     .           *))  -  -  -  Ann_Lee  *        *  -

nw/xinhua/00/x_0001   3   0    She   PRP  (TOP(S(NP*  -  -  -  -        *       *   (2)
nw/xinhua/00/x_0001   3   1     /?     .           *))  -  -  -  -        *       *   -

#end document
"""
LITBANK = """#begin document (12_novel_brat); part 0
12_novel_brat\t0\t0\tthe\t_\t_\t_\t_\t_\t_\t_\t_\t(0
12_novel_brat\t0\t1\tdog\t_\t_\t_\t_\t_\t_\t_\t_\t0)
12_novel_brat\t0\t2\tran\t_\t_\t_\t_\t_\t_\t_\t_\t

#end document
"""


def text_file(folder, text, name="x.conll"):
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def rows(*cells, name="(d); part 000", end="#end document\n"):
    """One document of one sentence whose words are letters."""
    lines = (f"d 0 {n} {chr(97 + n)} {cell}\n" for n, cell in enumerate(cells))
    return f"#begin document {name}\n{''.join(lines)}\n{end}"


def read(folder, text, policy="error", **options):
    return conll.read(text_file(folder, text), Rejects(policy), **options)


def test_ontonotes_columns(tmp_path):
    (document,) = read(tmp_path, ONTONOTES)
    assert document == Document(
        id="nw/xinhua/00/x_0001_3",
        words=("Ann", "'s", ".", "She", "?"),
        sentence_of_word=(0, 0, 0, 1, 1),
        speakers=("Ann_Lee", "Ann_Lee", "Ann_Lee", None, None),
        genre="nw",
        clusters=(((0, 0), (3, 3)), ((0, 1),)),
        header="(nw/xinhua/00/x_0001); part 003",
    )


def test_litbank_columns_with_windows_line_ends_and_a_byte_order_mark(tmp_path):
    (document,) = read(tmp_path, "\ufeff" + LITBANK.replace("\n", "\r\n"))
    assert document == Document(
        "12_novel_brat_0",
        ("the", "dog", "ran"),
        (0, 0, 0),
        clusters=(((0, 1),),),
        header="(12_novel_brat); part 0",
    )


@pytest.mark.parametrize(
    ("cells", "clusters"),
    [
        (["(1", "(1", "1)", "1)"], [[(0, 3), (1, 2)]]),  # the last begun ends first
        (["(1", "1)|(1", "1)"], [[(0, 2), (1, 1)]]),  # in a cell, begins before ends
        (["(1", "(1)", "1)"], [[(0, 2), (1, 1)]]),
        (["(1|(1|(1)", "1)", "1)"], [[(0, 0), (0, 1), (0, 2)]]),
        (["(1|(2", "1)", "2)"], [[(0, 1)], [(0, 2)]]),  # different clusters may cross
        (["(1(2)", "1)(3", "3)"], [[(0, 0)], [(0, 1)], [(1, 2)]]),  # without bars
        (["(x1)", "*", "(x1)"], [[(0, 0), (2, 2)]]),
    ],
)
def test_brackets_are_read_as_the_reference_scorer_reads_them(tmp_path, cells, clusters):
    (document,) = read(tmp_path, rows(*cells))
    assert [list(cluster) for cluster in document.clusters] == clusters


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (rows("-", "1)"), 3, "cluster 1 ends that never began"),
        (rows("-", "(1", "-"), 3, r"cluster 1 begins \('b'\), never ends"),
        (rows("-", "x"), 3, "no coreference brackets: 'x'"),
        (rows("-").replace("d 0 0 a -", "d 0 a -"), 2, "4 columns where at least 5"),
        (rows("-").replace("d 0 0 a -", "d\t0\t0\t\t-"), 2, "column 3 from 0, is empty"),
        (rows("-", end=""), 4, "no #end document before the next"),
        ("d 0 0 a -\n" + rows("-"), 1, "a word outside #begin document"),
        (rows("-") + rows("-"), 8, "a document of this name came before"),
        ("#begin document (e); part 0\n#end document\n", 2, "it has no words"),
    ],
)
def test_a_document_that_cannot_be_used_is_rejected_with_its_line(tmp_path, text, line, reason):
    text += rows("(1)", "(1)", name="(other); part 000")
    with pytest.raises(DataError, match=rf"x\.conll:{line}: record .*{reason}"):
        read(tmp_path, text)
    rejects = Rejects("skip")
    kept = conll.read(text_file(tmp_path, text), rejects)
    assert kept[-1].id == "other_0"
    assert len(rejects.found) == 1


def test_a_file_that_ends_inside_a_document(tmp_path):
    with pytest.raises(DataError, match=r"x\.conll:3: record d_0: the file ends before #end"):
        read(tmp_path, rows("-", end=""))


def test_a_mention_in_two_clusters_joins_them_or_is_rejected(tmp_path):
    text = rows("(1)|(2)", "(1)", "(2)", "(3)")
    assert read(tmp_path, text)[0].clusters == (((0, 0), (1, 1), (2, 2)), ((3, 3),))
    with pytest.raises(DataError, match=r"mention 0\.\.0 stands in two clusters"):
        read(tmp_path, text, shared="error")


def test_a_repeated_mention_is_dropped_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "spanbert_ext"):
        (document,) = read(tmp_path, rows("(1)|(1)", "(1)"))
    assert document.clusters == (((0, 0), (1, 1)),)
    assert "dropped 1 mentions repeated in their cluster" in caplog.text


def test_folders_and_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        conll.read(tmp_path / "none", Rejects())
    with pytest.raises(DataError, match="there is no record"):
        read(tmp_path, "")
    (tmp_path / "bad").write_bytes(b"#begin document (d); part 0\nd 0 0 \xff -\n")
    with pytest.raises(DataError, match="bad:2: not UTF-8"):
        conll.read(tmp_path / "bad", Rejects())
    folder = tmp_path / "tree"
    (folder / "a" / "b").mkdir(parents=True)
    with pytest.raises(DataError, match="no file whose name ends in conll"):
        conll.read(folder, Rejects())
    text_file(folder / "a" / "b", ONTONOTES, "x.v4_gold_conll")
    text_file(folder / "a", LITBANK, "y.conll")
    text_file(folder, "no corpus", "README")
    assert [d.id for d in conll.read(folder, Rejects())] == [
        "nw/xinhua/00/x_0001_3",
        "12_novel_brat_0",
    ]
    with pytest.raises(StorageError, match="cannot write"):
        conll.write(tmp_path / "no" / "where", [])


def test_written_files_have_the_columns_and_the_order_the_scorer_expects(tmp_path):
    document = Document(
        "name_7",
        ("a", "b", "c", "d"),
        (0, 0, 0, 1),
        ("X", None, None, None),
        clusters=(((0, 1), (0, 3), (1, 1)), ((0, 2), (2, 2), (3, 3)), ((2, 3),)),
    )
    assert conll.write(tmp_path / "out", [document]) == 0
    lines = (tmp_path / "out").read_text().split("\n")
    assert lines[0] == "#begin document (name); part 007"
    assert lines[1] == "name\t7\t0\ta\t-\t*\t-\t-\t-\tX\t*\t(0|(1|(0"
    assert lines[2] == "name\t7\t1\tb\t-\t*\t-\t-\t-\t-\t*\t(0)|0)"
    assert lines[3] == "name\t7\t2\tc\t-\t*\t-\t-\t-\t-\t*\t(2|(1)|1)"
    assert lines[4] == ""
    assert lines[5] == "name\t7\t0\td\t-\t*\t-\t-\t-\t-\t*\t(1)|2)|0)"
    assert lines[6:] == ["", "#end document", ""]


def test_names_of_documents_are_kept(tmp_path):
    for text in (ONTONOTES, LITBANK, rows("-", name="(LuoTestCase);")):
        (document,) = read(tmp_path, text)
        conll.write(tmp_path / "out", [document])
        written = (tmp_path / "out").read_text()
        assert written.split("\n")[0] == text.split("\n")[0]
        assert conll.read(tmp_path / "out", Rejects()) == [document]


def test_mentions_of_a_cluster_that_cross_cannot_be_written(tmp_path):
    document = Document("d", tuple("abcd"), (0,) * 4, clusters=(((0, 2), (1, 3), (3, 3)),))
    with pytest.raises(DataError, match=r"\(0, 2\) and \(1, 3\) of one cluster overlap in part"):
        conll.write(tmp_path / "out", [document])
    assert conll.write(tmp_path / "out", [document], crossing="drop") == 1
    (back,) = conll.read(tmp_path / "out", Rejects())
    assert back.clusters == (((0, 2), (3, 3)),)
    # A shared word is enough: the format would end the mention that begins there.
    touching = dataclasses.replace(document, clusters=(((0, 1), (1, 2)),))
    assert conll.write(tmp_path / "out", [touching], crossing="drop") == 1
    with pytest.raises(DataError, match="a tab or line feed in word 0"):
        conll.write(tmp_path / "out", [Document("d", ("a\tb",), (0,))])


# Documents of any shape.

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


def crosses(cluster):
    return any(a < c <= b < d for a, b in cluster for c, d in cluster)


@settings(max_examples=150)
@given(documents())
@example(Document("d_0", ("a",), (0,)))
@example(Document("d_0", ("a",), (0,), clusters=(((0, 0),),)))
def test_what_is_written_is_read_back(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "back.conll"
    try:
        conll.write(path, [document])
    except DataError:
        assert any(map(crosses, document.clusters))
        conll.write(path, [document], crossing="drop")
        (back,) = conll.read(path, Rejects())
        before, after = ({m for c in d.clusters for m in c} for d in (document, back))
        assert after < before
        return
    (back,) = conll.read(path, Rejects())
    name = document.id.rpartition("_")[0]
    assert back.header.startswith(f"({name}); part 0")
    genre = "nw" if document.id.startswith("nw/") else None
    assert back == dataclasses.replace(document, header=back.header, genre=genre)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"words": (), "sentence_of_word": ()}, "it has no words"),
        ({"words": ("a", "")}, "word 1 is empty"),
        ({"sentence_of_word": (0,)}, "2 words but 1 sentence numbers"),
        ({"sentence_of_word": (0, 2)}, "sentence number 2 at word 1 follows 0"),
        ({"sentence_of_word": (1, 0)}, "sentence number 1 at word 0 follows -1"),
        ({"speakers": ("A",)}, "2 words but 1 speakers"),
        ({"word_offsets": ((0, 1),)}, "2 words but 1 offsets"),
        ({"clusters": (((0, 2),),)}, r"mention 0\.\.2 is out of range, there are 2 words"),
        ({"clusters": (((1, 0),),)}, r"mention 1\.\.0 is out of range"),
        ({"clusters": (((-1, 0),),)}, r"mention -1\.\.0 is out of range"),
        ({"clusters": (((0, 0),), ((0, 0),))}, r"mention 0\.\.0 occurs twice"),
    ],
)
def test_an_impossible_document_is_named(change, reason):
    fields = {"id": "D7", "words": ("a", "b"), "sentence_of_word": (0, 0), **change}
    with pytest.raises(DataError, match=f"document D7: {reason}"):
        Document(**fields)


def test_clusters_are_sorted_and_mentions_unique():
    clusters = [[(5, 6), (1, 1)], [], [(0, 3), (0, 3), (0, 1)], [(9, 9), (5, 6)]]
    expected = (((0, 1), (0, 3)), ((1, 1), (5, 6), (9, 9)))
    assert sorted_clusters(clusters) == (expected, 1)
    chain = [[(0, 0), (1, 1)], [(2, 2), (3, 3)], [(1, 1), (2, 2)]]
    assert sorted_clusters(chain) == ((((0, 0), (1, 1), (2, 2), (3, 3)),), 0)
    assert without_singletons((((0, 0),), ((1, 1), (2, 2)))) == (((1, 1), (2, 2)),)
    document = Document("d", tuple("abc"), (0, 0, 1), clusters=(((0, 0),), ((1, 1), (2, 2))))
    assert list(counts([document, document]).values()) == [2, 4, 6, 6, 4, 2]


# Segments.

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


def test_a_document_in_segments_typed_by_hand():
    document = Document(
        "d",
        ("the", "cats", "ran", ".", "it", "\x01", "sat"),
        (0, 0, 0, 0, 1, 1, 1),
        ("B", "B", "A", None, "C", "C", "A"),
        "nw",
        clusters=(((0, 1), (4, 5)), ((1, 1),)),
    )
    found = cut(document, max_segment_len=7, max_speakers=2)
    assert " ".join(pieces(found)) == (
        "[CLS] the cat ##s [SEP] [CLS] r ##a ##n . [SEP] "
        "[CLS] i ##t [UNK] [SEP] [CLS] s ##a ##t [SEP]"
    )
    assert found.cu_seqlens.tolist() == [0, 5, 11, 16, 21]
    first, second = [-1, 0, 0, 0, -1, -1, 0, 0, 0, 0, -1], [-1, 1, 1, 1, -1]
    assert found.sentence_map.tolist() == first + second + second
    first, second = [-1, 0, 1, 1, -1, -1, 2, 2, 2, 3, -1], [-1, 4, 4, 5, -1, -1, 6, 6, 6, -1]
    assert found.word_of_piece.tolist() == first + second
    assert found.segment_of.tolist() == [0] * 5 + [1] * 6 + [2] * 5 + [3] * 5
    # B is 1, A 2; C would be 3 and shares the last number.
    first, second = [0, 1, 1, 1, 0, 0, 2, 2, 2, 0, 0], [0, 2, 2, 2, 0]
    assert found.speakers.tolist() == first + second + second
    assert found.genre == "nw"
    assert found.gold_starts.tolist() == [1, 2, 12]
    assert found.gold_ends.tolist() == [3, 3, 14]
    assert found.gold_clusters.tolist() == [0, 1, 0]
    # The third cluster names words again that the first one has.
    clusters = [[(1, 3), (12, 14)], [(2, 2)], [(1, 2), (6, 6)]]
    assert found.word_clusters(clusters) == (((0, 1), (4, 5)), ((1, 1),), ((2, 2),))
    for values in dataclasses.astuple(found)[1:]:
        assert values.dtype == np.int64
    for span in ((0, 3), (1, 4), (3, 1), (-1, 3), (8, 21)):
        with pytest.raises(DataError, match="d: "):
            found.word_span(*span)


def test_singletons_are_dropped_where_asked():
    document = Document("d", ("a", "b", "c"), (0, 0, 0), clusters=(((0, 0),), ((1, 1), (2, 2))))
    assert cut(document).gold_clusters.tolist() == [0, 1, 1]
    assert cut(document, singletons=False).gold_starts.tolist() == [2, 3]
    assert len(set(cut(document, singletons=False).gold_clusters.tolist())) == 1


def test_impossible_settings_of_segments():
    document = Document("d", ("a",), (0,))
    with pytest.raises(ConfigError, match="max_segment_len: must be at least 3; got 2"):
        cut(document, max_segment_len=2)
    with pytest.raises(ConfigError, match="max_speakers: must be at least 1; got 0"):
        cut(document, max_speakers=0)
    bare = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer)
    with pytest.raises(ConfigError, match=r"it has no \[CLS\]"):
        segment([document], bare)
    assert segment([], TOKENIZER) == []


def plain_ends(sizes, closes, room):
    """Segment ends by trying every piece from the farthest back."""
    ends_word, ends_sentence, at = set(), set(), 0
    for size, close in zip(sizes, closes, strict=True):
        at += size
        ends_word.add(at)
        if close:
            ends_sentence.add(at)
    found, begin = [], 0
    while begin < at:
        tries = range(min(begin + room, at), begin, -1)
        good = next((t for t in tries if t in ends_sentence), None)
        good = good or next((t for t in tries if t in ends_word), None)
        found.append(good or begin + room)
        begin = found[-1]
    return found


@settings(max_examples=200)
@given(documents(), st.integers(3, 12), st.booleans(), st.integers(1, 3))
@example(Document("d_0", ("a",), (0,)), 3, True, 1)
@example(
    Document("d_0", ("unbelievable",) * 3, (0, 0, 0), clusters=(((0, 0), (2, 2)),)), 3, True, 1
)
def test_segments_hold_every_word_whole_and_map_back(document, longest, singletons, max_speakers):
    found = cut(document, max_segment_len=longest, singletons=singletons, max_speakers=max_speakers)
    words, inner = found.word_of_piece, found.word_of_piece >= 0
    assert (found.cu_seqlens[0], found.cu_seqlens[-1]) == (0, len(found.tokens))
    for begin, end in zip(found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
        assert 3 <= end - begin <= longest
        assert (found.tokens[begin], found.tokens[end - 1]) == (CLS, SEP)
        assert inner[begin:end].tolist() == [False, *[True] * (end - begin - 2), False]
    # Every word in its order, tokenised as it is alone; never a special token but [UNK].
    expected = [TOKENIZER.tokenize(w, split_special_tokens=True) for w in document.words]
    expected = [own or ["[UNK]"] for own in expected]
    flat = [piece for own in expected for piece in own]
    assert [p for p, own in zip(pieces(found), inner, strict=True) if own] == flat
    assert not set(found.tokens[inner].tolist()) & {CLS, SEP}
    sizes = [len(own) for own in expected]
    assert words[inner].tolist() == np.repeat(np.arange(len(sizes)), sizes).tolist()
    numbers = document.sentence_of_word
    assert found.sentence_map[inner].tolist() == [numbers[w] for w in words[inner]]
    assert set(found.sentence_map[~inner].tolist()) == {-1}
    # Ends where it should.
    closes = [n != m for n, m in zip(numbers, [*numbers[1:], -1], strict=True)]
    lengths = np.diff(found.cu_seqlens) - 2
    assert np.cumsum(lengths).tolist() == plain_ends(sizes, closes, longest - 2)
    for word, size in enumerate(sizes):
        if len(set(found.segment_of[words == word].tolist())) > 1:
            assert size > longest - 2
    # Speakers and gold mentions.
    said = document.speakers or (None,) * len(document.words)
    known = list(dict.fromkeys(s for s in said if s))
    ids = {s: min(n, max_speakers) for n, s in enumerate(known, 1)}
    assert found.speakers[inner].tolist() == [ids.get(said[w], 0) for w in words[inner]]
    clusters = document.clusters if singletons else without_singletons(document.clusters)
    spans = {}
    for start, end, number in zip(
        found.gold_starts, found.gold_ends, found.gold_clusters, strict=True
    ):
        spans.setdefault(int(number), []).append((int(start), int(end)))
    assert found.word_clusters(spans.values()) == clusters
    assert (np.diff(found.gold_starts) >= 0).all()


@settings(max_examples=100)
@given(documents(), st.integers(3, 8), st.integers(1, 4), st.integers(0, 99))
def test_a_window_is_a_stretch_of_whole_segments(document, longest, most, seed):
    whole = cut(document, max_segment_len=longest)
    part = window(whole, np.random.default_rng(seed), most)
    assert part.segments == min(most, whole.segments)
    gold = list(zip(whole.gold_starts, whole.gold_ends, whole.gold_clusters, strict=True))
    stretches = []
    for first in range(whole.segments - part.segments + 1):
        begin, end = whole.cu_seqlens[[first, first + part.segments]].tolist()
        stretches.append(
            [
                whole.tokens[begin:end].tolist(),
                whole.word_of_piece[begin:end].tolist(),
                whole.sentence_map[begin:end].tolist(),
                (whole.cu_seqlens[first : first + part.segments + 1] - begin).tolist(),
                [(a - begin, b - begin, c) for a, b, c in gold if begin <= a and b < end],
            ]
        )
    found = [part.tokens, part.word_of_piece, part.sentence_map, part.cu_seqlens]
    mentions = zip(part.gold_starts, part.gold_ends, part.gold_clusters, strict=True)
    assert [*(array.tolist() for array in found), list(mentions)] in stretches
    assert (part.segment_of[0], part.segment_of[-1]) == (0, part.segments - 1)


def test_every_window_is_drawn():
    whole = cut(Document("d", tuple("abcde"), (0, 1, 2, 3, 4)), max_segment_len=3)
    rng = np.random.default_rng(0)
    firsts = [int(window(whole, rng, 2).word_of_piece[1]) for _ in range(400)]
    # Each of four with 1/4: under 50 or over 160 of 400 has a probability below 1e-7.
    assert all(50 < firsts.count(first) < 160 for first in range(4))
    assert window(whole, rng, 5) is whole
    with pytest.raises(ConfigError, match="max_segments: must be at least 1; got 0"):
        window(whole, rng, 0)
    with pytest.raises(DataError, match=r"no segments 2\.\.1"):
        whole.part(2, 2)


def test_ten_thousand_words_are_cut_and_written(tmp_path):
    words = tuple(f"w{n % 97}" for n in range(10_000))
    clusters = tuple(
        tuple((n, n + n % 3) for n in range(first, 9_990, 50)) for first in range(0, 50, 5)
    )
    document = Document("d_0", words, tuple(n // 5_000 for n in range(10_000)), clusters=clusters)
    found = cut(document)
    assert np.diff(found.cu_seqlens).max() <= 384
    assert len(found.gold_starts) == sum(map(len, clusters))
    conll.write(tmp_path / "long", [document])
    assert conll.read(tmp_path / "long", Rejects())[0].clusters == clusters


# JSON lines.

RECORD = {
    "doc_key": "nw/x_0",
    "sentences": [["[CLS]", "the", "c", "##at", "[SEP]"], ["[CLS]", ".", "it", "sat", "[SEP]"]],
    "speakers": [["[SPL]", "A", "A", "A", "[SPL]"], ["[SPL]", "A", "-", "-", "[SPL]"]],
    "clusters": [[[1, 3], [7, 7]], [[8, 8]]],
    "sentence_map": [0, 0, 0, 0, 0, 0, 0, 1, 1, 2],
    "subtoken_map": [0, 0, 1, 1, 1, 1, 2, 3, 4, 4],
}
DOCUMENT = Document(
    "nw/x_0",
    ("the", "cat", ".", "it", "sat"),
    (0, 0, 0, 1, 1),
    ("A", "A", "A", None, None),
    "nw",
    (((0, 1), (3, 3)), ((4, 4),)),
)


def json_file(folder, *records):
    return text_file(folder, "".join(json.dumps(r) + "\n" for r in records), "x.jsonl")


def test_the_original_layout_is_read(tmp_path):
    assert jsonlines.read(json_file(tmp_path, RECORD), Rejects()) == [DOCUMENT]
    (found,) = jsonlines.read_pieces(json_file(tmp_path, RECORD), Rejects())
    assert found.pieces == ("the", "c", "##at", ".", "it", "sat")
    assert (found.sizes, found.cuts) == ((1, 2, 1, 1, 1), (3, 6))
    with pytest.raises(DataError, match="document nw/x_0: the tokenizer has no piece '##at'"):
        found.segmented(TOKENIZER)


def test_plain_words_and_text_are_read(tmp_path):
    record = {
        "doc_key": "nw/x_0",
        "sentences": [["the", "cat", "."], [], ["it", "sat"]],
        "speakers": [["A", "A", "A"], [], ["-", None]],
        "clusters": [[[0, 1], [3, 3]], [[4, 4]]],
    }
    text = {"id": "t", "text": "Ann ran. She fell.", "genre": "own"}
    found = jsonlines.read(json_file(tmp_path, record, text), Rejects())
    assert found[0] == DOCUMENT
    assert found[1].words == ("Ann", "ran", ".", "She", "fell", ".")
    assert (found[1].id, found[1].genre, found[1].sentence_of_word) == (
        "t",
        "own",
        (0,) * 3 + (1,) * 3,
    )
    bare = jsonlines.document_of({"sentences": [["a"]]}, "in.jsonl:4")
    assert bare == Document("in.jsonl:4", ("a",), (0,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sentences": "x"}, "'sentences' must be there, a list of lists of strings"),
        ({"sentences": [[1]]}, "'sentences' must be there"),
        ({"subtoken_map": [0]}, "'subtoken_map' has 1 entries for 10 pieces"),
        ({"sentence_map": ["0"] * 10}, "'sentence_map' must be a list of integers"),
        ({"subtoken_map": [0, 0, 1, 1, 1, 1, 0, 3, 4, 4]}, "numbers fall after piece 2"),
        ({"speakers": ["A"]}, "1 speakers for 10 words or pieces"),
        ({"clusters": [[[0, 1]]]}, r"mention \[0, 1\] begins or ends at a special"),
        ({"clusters": [[[9, 10]]]}, r"mention \[9, 10\] is out of range 0\.\.9"),
        ({"clusters": [[[3, 1]]]}, r"mention \[3, 1\] is out of range"),
        ({"clusters": [[3]]}, r"a mention must be \[first, last\], got 3"),
        ({"clusters": [[[1.0, 2]]]}, "a mention must be"),
        ({"sentences": [["[CLS]"]]}, "segment 0 lacks"),
        ({"genre": 3}, "'genre' must be a string, got 3"),
    ],
)
def test_a_record_that_cannot_be_used_is_rejected(tmp_path, change, reason):
    bad = {**RECORD, "doc_key": "bad", **change}
    if change == {"sentences": [["[CLS]"]]}:
        bad.update(subtoken_map=[0], sentence_map=[0])
    with pytest.raises(DataError, match=f"x.jsonl:2: record bad: .*{reason}"):
        jsonlines.read(json_file(tmp_path, RECORD, bad), Rejects())
    rejects = Rejects("skip")
    assert jsonlines.read(json_file(tmp_path, RECORD, bad), rejects) == [DOCUMENT]
    assert [r.id for r in rejects.found] == ["bad"]


@pytest.mark.parametrize("line", ["{", "[1]", "1" * 5000])
def test_a_line_that_is_no_record_is_rejected(tmp_path, line):
    path = text_file(tmp_path, json.dumps(RECORD) + "\n\n" + line + "\n", "x.jsonl")
    with pytest.raises(DataError, match="x.jsonl:3: record"):
        jsonlines.read(path, Rejects())


def test_the_original_layout_is_written_with_its_conventions():
    clusters = (((0, 1), (3, 3)),)
    document = Document("d", ("the", "cab", ".", "it", "sat"), (0, 0, 0, 1, 1), clusters=clusters)
    record = jsonlines.record_of(cut(document, max_segment_len=6), TOKENIZER)
    assert record["sentences"] == [
        ["[CLS]", "the", "c", "##a", "##b", "[SEP]"],
        ["[CLS]", ".", "[SEP]"],
        ["[CLS]", "i", "##t", "[SEP]"],
        ["[CLS]", "s", "##a", "##t", "[SEP]"],
    ]
    assert record["subtoken_map"] == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]
    # Behind the full stop, [SEP] and [CLS] belong to the next sentence already.
    assert record["sentence_map"] == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert record["clusters"] == [[[1, 4], [10, 11]]]
    assert record["speakers"][1] == ["[SPL]", "", "[SPL]"]


@settings(max_examples=100)
@given(documents(), st.integers(3, 12))
def test_the_original_layout_survives_writing_and_reading(tmp_path_factory, document, longest):
    path = tmp_path_factory.getbasetemp() / "back.jsonl"
    found = cut(document, max_segment_len=longest)
    jsonlines.write(path, [found], TOKENIZER)
    (back,) = jsonlines.read_pieces(path, Rejects())
    again = back.segmented(TOKENIZER)
    for name in ("tokens", "cu_seqlens", "sentence_map", "word_of_piece", "speakers"):
        assert getattr(again, name).tolist() == getattr(found, name).tolist(), name
    assert back.document.clusters == document.clusters
    assert back.document.sentence_of_word == document.sentence_of_word
    for own, word in zip(back.document.words, document.words, strict=True):
        assert own == word or "[UNK]" in own or not word.isprintable()
