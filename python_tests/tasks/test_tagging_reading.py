"""CoNLL files as they come, and what is wrong with them."""

import pytest

from spanbert_ext.errors import DataError
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.tagging import data as reading
from spanbert_ext.tasks.tagging.config import TaggingOptions
from spanbert_ext.tasks.tagging.data import read_conll

PLAIN = """-DOCSTART-\tO

U.N.\tB-ORG
official\tO
Ekeus\tB-PER

for\tO
Bagh\tB-LOC
dad\tI-LOC
-DOCSTART-\tO

"\tO
Quoted"\tB-PER
"""
COLUMNS_2003 = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
British JJ I-NP B-MISC
# # I-NP O
5 CD I-NP O
"""


def read(tmp_path, text, policy="error", types=None, share=0.01, **options):
    path = tmp_path / "x.conll"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    rejects = Rejects(policy, share)
    return read_conll(path, TaggingOptions(**options), rejects, types), rejects


def test_documents_sentences_and_quotes(tmp_path):
    (first, second), _ = read(tmp_path, PLAIN)
    assert first.id == "x.conll:3"
    assert first.words == ("U.N.", "official", "Ekeus", "for", "Bagh", "dad")
    assert first.tags == ("B-ORG", "O", "B-PER", "O", "B-LOC", "I-LOC")
    assert list(first.sentence_ranges()) == [(0, 3), (3, 6)]
    assert second.id == "x.conll:12"
    assert second.words == ('"', 'Quoted"') and second.tags == ("O", "B-PER")


def test_blanks_iob1_and_a_number_sign_that_is_a_word(tmp_path):
    (document,), _ = read(tmp_path, COLUMNS_2003)
    assert document.words == ("EU", "rejects", "German", "British", "#", "5")
    assert document.tags == ("B-ORG", "O", "B-MISC", "B-MISC", "O", "O")


def test_columns_are_chosen(tmp_path):
    (document,), _ = read(tmp_path, COLUMNS_2003, tag_column=2)
    assert document.tags == ("B-NP", "B-VP", "B-NP", "I-NP", "I-NP", "I-NP")
    text = "O\tx\tAda\nB-PER\tx\tLovelace\n"
    (document,), _ = read(tmp_path, text, token_column=-1, tag_column=0)
    assert document.words == ("Ada", "Lovelace") and document.tags == ("O", "B-PER")


def test_comments(tmp_path):
    text = "# id 1\tdomain=en\nAda _ _ B-PER\n# O\nruns _ _ O\n\n# id 2\nOn _ _ O\n"
    (document,), _ = read(tmp_path, text)
    assert document.words == ("Ada", "runs", "On") and document.sentences == (0, 2)
    (document,), _ = read(tmp_path, "# O\nx O\n#tag O\n")  # as many columns as the file, and a tag
    assert document.words == ("#", "x", "#tag")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark(tmp_path, ending, mark):
    data = mark + PLAIN.replace("\n", ending).encode()
    documents, _ = read(tmp_path, data)
    assert documents == read(tmp_path, PLAIN)[0]
    assert read(tmp_path, data.rstrip())[0] == documents


def test_odd_characters_are_words(tmp_path):
    words = ("e\u0301\u2028x", "\u05e9\u05c1", "\U0001f469\u200d\U0001f467", "a\0b", "New York")
    (document,), _ = read(tmp_path, "".join(f"{word}\tO\n" for word in words))
    assert document.words == words


def test_bilou_and_bioes_files_mean_the_same(tmp_path):
    bilou = "a\tU-X\nb\tB-X\nc\tI-X\nd\tL-X\n"
    bioes = bilou.replace("U-", "S-").replace("L-", "E-")
    for text in (bilou, bioes):
        assert read(tmp_path, text)[0][0].tags == ("B-X", "B-X", "I-X", "I-X")


GOOD = "".join(f"w{n}\tB-PER\nx\tI-PER\n\n" for n in range(5))


@pytest.mark.parametrize(
    ("bad", "line", "reason"),
    [
        ("a\tO\nb\n", 17, "1 columns, where most lines of the file have 2"),
        ("a\tO\nb\tO\tO\n", 17, "3 columns"),
        ("a\tO\nb\tNNP\n", 17, "'NNP' is not a tag"),
        ("a\tO\nb\t\n", 17, "'' is not a tag"),
        ("a\tO\n\tO\n", 17, "the word, column 0, is empty"),
        ("a\tO\nb\tI-PER\n", 17, "I-PER after O is not BIO"),
        ("a\tB-PER\nb\tI-LOC\n", 17, "I-LOC after B-PER is not BIO"),
        ("a\tO\nb\tU-PER\n", 17, "U-PER after O is not BIO"),
        ("a\tO\nb\tB-ORG\n", 17, "'ORG' was not in the training data, which had LOC, PER"),
        ("a\tO\nb\xff\tO\n", 17, "not UTF-8: byte 0xff"),
    ],
)
def test_a_bad_sentence_is_named_or_left_out(tmp_path, bad, line, reason):
    text = (GOOD + bad + "\n" + GOOD).encode("latin-1")
    with pytest.raises(DataError) as caught:
        read(tmp_path, text, types=["PER", "LOC"])
    assert f"x.conll:{line}: record x.conll:16: " in str(caught.value)
    assert reason in str(caught.value)
    (document,), rejects = read(tmp_path, text, "skip", ["PER", "LOC"])
    assert [reject.id for reject in rejects.found] == ["x.conll:16"]
    assert len(document.sentences) == 10 and document.words.count("x") == 10


def test_another_format_is_refused_whole(tmp_path):
    with pytest.raises(DataError, match="is it another format"):
        read(tmp_path, "The dog\nbarks loudly\n\nat me\n", "skip")
    with pytest.raises(DataError, match="a word and a tag on a line"):
        read(tmp_path, "one\ntwo\n")
    with pytest.raises(DataError, match=r"tagging.tag_column = 3, but most lines have 2"):
        read(tmp_path, GOOD, tag_column=3)
    with pytest.raises(DataError, match="another format"):
        read(tmp_path, GOOD.encode("utf-16"), "skip")
    for empty in ("", "\n\n", "-DOCSTART-\tO\n\n", "# only a comment\n"):
        with pytest.raises(DataError, match="no record"):
            read(tmp_path, empty)
    with pytest.raises(DataError, match="cannot be read"):
        read_conll(tmp_path / "nothing", TaggingOptions(), Rejects())


def test_long_documents_are_cut_between_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MOST_WORDS", 5)
    text = "".join("w\tB-A\n" * n + "\n" for n in (2, 3, 1, 7, 1, 4))
    documents, _ = read(tmp_path, text)
    assert [[b - a for a, b in x.sentence_ranges()] for x in documents] == [
        [2, 3],
        [1],
        [7],
        [1, 4],
    ]
    assert [x.id for x in documents] == ["x.conll:1", "x.conll:8", "x.conll:10", "x.conll:18"]
