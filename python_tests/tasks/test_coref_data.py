"""CoNLL files of coreference, and documents."""

import dataclasses
import logging

import pytest
from coref_cases import documents, text_file
from hypothesis import example, given, settings

from spanbert_ext.errors import DataError, StorageError
from spanbert_ext.tasks.coref import conll
from spanbert_ext.tasks.coref.data import (
    Document,
    merged,
    sorted_clusters,
    without_singletons,
)
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


def test_a_mention_in_two_clusters_stays_or_joins_them_or_is_rejected(tmp_path):
    text = rows("(1)|(2)", "(1)", "(2)", "(3)")
    (kept,) = read(tmp_path, text)
    assert kept.clusters == (((0, 0), (1, 1)), ((0, 0), (2, 2)), ((3, 3),))
    joined = (((0, 0), (1, 1), (2, 2)), ((3, 3),))
    assert read(tmp_path, text, shared="merge")[0].clusters == merged(kept).clusters == joined
    with pytest.raises(DataError, match=r"mention 0\.\.0 stands in two clusters"):
        read(tmp_path, text, shared="error")


def test_shared_mentions_keep_the_order_in_which_the_reference_scorer_meets_clusters(tmp_path):
    """Words alone first, then those that begin; a cluster is met where it begins, not ends."""
    (document,) = read(tmp_path, rows("(3(2|(5)", "2)", "3)|(2(7)", "2)|(5)"))
    expected = [[(0, 0), (3, 3)], [(0, 2)], [(0, 1), (2, 3)], [(2, 2)]]
    assert [list(c) for c in document.clusters] == sorted(expected)  # no mention is shared
    (document,) = read(tmp_path, rows("(3(2|(5)", "2)", "3)|(2(7)|(5)", "2)"))
    assert [list(c) for c in document.clusters] == [
        [(0, 0), (2, 2)],
        [(0, 2)],
        [(0, 1), (2, 3)],
        [(2, 2)],
    ]


def test_a_repeated_mention_stays_and_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "spanbert_ext"):
        (document,) = read(tmp_path, rows("(1)|(1)", "(1)"))
    assert document.clusters == (((0, 0), (0, 0), (1, 1)),)
    assert merged(document).clusters == (((0, 0), (1, 1)),)
    assert "1 mentions stand twice in their cluster" in caplog.text


def test_folders_and_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        conll.read(tmp_path / "none", Rejects())
    with pytest.raises(DataError, match="there is no record"):
        read(tmp_path, "")
    (tmp_path / "bad").write_bytes(b"#begin document (d); part 0\nd 0 0 \xff -\n")
    with pytest.raises(DataError, match="bad:2: record d_0: not UTF-8"):
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
    with pytest.raises(DataError, match="a tab or line end in word 0"):
        conll.write(tmp_path / "out", [Document("d", ("a\tb",), (0,))])


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
