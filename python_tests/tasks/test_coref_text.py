"""Words and sentences of raw text, resolved text, and coreference by strings."""

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import string_coref
from spanbert_ext.errors import DataError
from spanbert_ext.tasks.coref.data import Document, from_text
from spanbert_ext.tasks.coref.mention_words import head_of, kind_of
from spanbert_ext.tasks.coref.resolve import (
    Mention,
    cluster_mentions,
    resolved_document,
    resolved_text,
    with_text,
)
from spanbert_ext.tasks.coref.sentences import number_sentences
from spanbert_ext.text import units


def treebank_words(text):
    return units(text, treebank=True)


@pytest.mark.parametrize(
    "divided",
    [
        # A bar parts words that touch.
        "Mr. J. R. Smith ca|n't|, can|not|; do|n’t o'clock 't|is|.",
        "He|'s here|, we|'ll see|; I|'d|'ve gone|, JOHN|'S dog|.",
        'So do I|. "|I|.|" Chapter I|.',
        "the U.S. army at 8:35 p.m. , i.e. late|, etc. and so on|.",
        "35,000,000 men|, $|1,000.50|, 50|%|, 1/2|, the 10th|, 1990s|, 20-year-old",
        "a drawing-room|--|well|—|and snake_case|, |__|x|__ |_|so|_ …| ... |.... *** |-|x",
        "see http://a.b/c?d=e|. or x.y@z.com|, www.a.org|!",
        "rock |'|n|'| roll|, grow 'em|, |'|hello|' ‘|Well|’ said |“|he|”",
        "What|?|!|! (|no|) [|1|] dogs|' James|'s",
        "été nai\u0308ve e\u0301tude नमस्ते दुनिया 東|京",
        "👩\u200d👩\u200d👧| 👍🏽| a|\x00|b \u200b| \ufeff|x",
        "No. 5 is no. 6|. Oh no|. vol. 2",
    ],
)
def test_words_of_a_text(divided):
    text = divided.replace("|", "")
    expected = [part for chunk in divided.split() for part in chunk.split("|") if part]
    assert [text[start:end] for start, end in treebank_words(text)] == expected


TEXTS = st.one_of(
    st.text(max_size=60),
    st.text("ab I.'’-_\"?!, 1:\u0301\u200d\u200b\x00\x85\u2028東é👍\U0001f3fd@/", max_size=60),
)


def check_words(text):
    at = 0
    for start, end in treebank_words(text):
        assert start < end
        assert not any(map(str.isspace, text[start:end]))
        assert at == start or text[at:start].isspace()
        at = end
    assert not text[at:].strip()


@settings(max_examples=250)
@given(TEXTS)
@example("")
@example("http://!!! www.. a@ .a. n't'n't ..' can")
def test_every_character_but_white_space_is_in_exactly_one_word(text):
    check_words(text)


@pytest.mark.parametrize(
    "text",
    ["1", "a.", "a+", "a@", "'", "n't", "-", "a-", "www.", "\u0301", "http://", "1a", "no. "],
)
def test_time_is_linear_in_a_text_that_repeats_itself(text):
    long = text * (100_000 // len(text)) + "é"
    begin = time.process_time()
    spans = treebank_words(long)
    number_sentences(long, spans)
    # A quadratic rule takes minutes.
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    "divided",
    [
        "Ann ran. | She fell. | Why? | Who knows!",
        "Mr. Smith met Dr. J. Jones of the U.S. Army. | They spoke.",
        'She said "No." | Then she left. | "Really?" she asked. | "Yes!" | He went.',
        "“Nonsense!” said Gregory. | “You lie.” | “I do not.”",
        "(He was old.) | [She was not.] | ‘Well?’ | ‘Fine.’",
        "It cost 3.50 at No. 5. | He paid at 8 p.m. | The shop closed at 9 a.m. daily.",
        "cats, dogs, etc. and so on. | Cats, dogs, etc. | The rest stayed.",
        "Wait... | Now! ... | What?! | 5 men came. | 東京。 | 大阪。",
        "A heading without a stop\n\n | then the text\nin lines. | End\n \t\n | again",
        "The boys' hats. | 'Hats?' | 'Yes.'",
        "He said: 'One. | Two.' | Three.",
    ],
)
def test_sentences_of_a_text(divided):
    text = divided.replace("| ", "")
    words = treebank_words(text)
    numbers = number_sentences(text, words)
    expected = [n for n, part in enumerate(divided.split("|")) for _ in treebank_words(part)]
    assert numbers == expected


def test_sentences_of_words_that_blanks_part():
    text = 'He said , \' One . Two . \' Three . " Four ? " said he . " Five . "'
    words = [match.span() for match in re.finditer(r"\S+", text)]
    numbers = number_sentences(text, words)
    assert numbers == [0] * 6 + [1] * 3 + [2] * 2 + [3] * 7 + [4] * 4


@settings(max_examples=200)
@given(TEXTS)
def test_sentence_numbers_rise_by_one(text):
    words = treebank_words(text)
    numbers = number_sentences(text, words)
    assert len(numbers) == len(words)
    assert numbers[:1] in ([], [0])
    assert all(b - a in (0, 1) for a, b in zip(numbers, numbers[1:], strict=False))


def test_a_document_of_raw_text():
    document = from_text("d", "Ann ran.\nShe  can't.", genre="own")
    assert document == Document(
        "d",
        ("Ann", "ran", ".", "She", "ca", "n't", "."),
        (0, 0, 0, 1, 1, 1, 1),
        None,
        "own",
        (),
        "Ann ran.\nShe  can't.",
        ((0, 3), (4, 7), (7, 8), (9, 12), (14, 16), (16, 19), (19, 20)),
    )
    assert document.span_text((3, 4)) == "She  ca"
    assert document.characters((3, 4)) == (9, 16)
    with pytest.raises(DataError, match="document d: it has no words"):
        from_text("d", " \n")


def test_both_splitters_can_be_replaced():
    def by_blanks(text):
        return [match.span() for match in re.finditer(r"\S+", text)]

    document = from_text("d", "a. b. c", by_blanks, lambda text, words: range(len(words)))
    assert document.words == ("a.", "b.", "c")
    assert document.sentence_of_word == (0, 1, 2)
    for spans in ([(0, 2), (1, 3)], [(3, 3)], [(0, 9)], [(-1, 2)], [(3, 5), (0, 2)]):
        with pytest.raises(DataError, match="document d: the word splitter returned"):
            from_text("d", "a. b. c", lambda text, spans=spans: spans)
    with pytest.raises(DataError, match="3 words but 1 sentence numbers"):
        from_text("d", "a. b. c", by_blanks, lambda text, words: [0])
    with pytest.raises(DataError, match="sentence number 7 at word 0"):
        from_text("d", "a. b. c", by_blanks, lambda text, words: [7, 8, 9])


@pytest.mark.parametrize(
    ("words", "head", "kind"),
    [
        ("He", "He", "pronoun"),
        ("her", "her", "pronoun"),
        ("the old king of France", "king", "nominal"),
        ("John , the king", "John", "name"),
        ("Mr. Smith 's", "Smith", "name"),
        ("the man who lost his hat", "man", "nominal"),
        ("this", "this", "pronoun"),
        ("of", "of", "nominal"),
        ("The Dog", "Dog", "nominal"),  # the text has "dog" elsewhere
    ],
)
def test_heads_and_kinds_of_mentions(words, head, kind):
    assert head_of(words.split()) == head
    assert kind_of(words.split(), {"dog"}) == kind


def marked(text):
    """A text without its marks, and clusters: [a:the man] is a mention of cluster a."""
    plain, stack, clusters, at = "", [], {}, 0
    for match in re.finditer(r"\[(\w):|\]", text):
        plain += text[at : match.start()]
        at = match.end()
        if match[1]:
            stack.append((match[1], len(plain)))
        else:
            name, start = stack.pop()
            clusters.setdefault(name, []).append((start, len(plain)))
    return plain + text[at:], list(clusters.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Name before description before pronoun; possessives; a sentence's first letter.
        (
            "[a:Anna] met [b:a man]. [a:She] gave [b:him] [a:her] book, and [b:he] liked [a:her].",
            "Anna met a man. Anna gave a man Anna's book, and a man liked Anna.",
        ),
        ("[a:The king] slept. Then [a:he] woke.", "The king slept. Then the king woke."),
        ("Later [a:the king] slept. [a:He] woke.", "Later the king slept. The king woke."),
        (
            "[a:Ann Lee] came; [a:Ann] sat, [a:Ann's] dog too.",
            "Ann Lee came; Ann Lee sat, Ann Lee's dog too.",
        ),
        ("[a:the dogs] ran to [a:their] house.", "the dogs ran to the dogs' house."),
        # The representative loses its own ending.
        ("[a:Anna's] dog saw [a:her].", "Anna's dog saw Anna."),
        # "her" before a noun and before anything else.
        (
            "[a:Anna] lost [a:her] and found [a:her] old hat.",
            "Anna lost Anna and found Anna's old hat.",
        ),
        ("[a:Anna] lost [b:[a:her] Bible].", "Anna lost Anna's Bible."),
        # A description is not put for one with the same head.
        (
            "[a:the old man] sat. [a:That man] stood, [a:he] did.",
            "the old man sat. That man stood, the old man did.",
        ),
        # A capital that begins a sentence makes no name.
        ("[a:Dogs] bark. We like dogs; [a:they] bite.", "Dogs bark. We like dogs; dogs bite."),
        # The outermost changes, what is inside vanishes with it.
        (
            "[a:Bob] and [b:Rex]. [a:He] saw [b:[a:his] pet].",
            "Bob and Rex. Bob saw Rex.",
        ),
        # Unchanged around, changed inside.
        (
            "[b:[a:Ann] and [c:Bo]] ran. [a:She] fell, [c:he] too.",
            "Ann and Bo ran. Ann fell, Bo too.",
        ),
        # A mention inside one of its own cluster stays, and so do reflexives and relatives.
        (
            "[a:the man [a:who] lost [a:his] hat] hurt [a:himself]. [a:He] wept.",
            "the man who lost his hat hurt himself. The man who lost his hat wept.",
        ),
        # Long ones last.
        (
            "[a:the man that we all met on that day] sat; [a:the guard] ate, [a:he] slept.",
            "The guard sat; the guard ate, the guard slept.",
        ),
        # Pronouns alone, singletons, none.
        ("[a:He] ate [a:his] hat. [b:Ann] saw.", "He ate his hat. Ann saw."),
        ("Nothing here.", "Nothing here."),
        # Line ends inside a representative.
        ("[a:Ann\n  Lee] sat. [a:She] rose.", "Ann\n  Lee sat. Ann Lee rose."),
        ("[a:NASA] grew, [a:it] did.", "NASA grew, NASA did."),
    ],
)
def test_resolved_text(text, expected):
    assert resolved_text(*marked(text)) == expected


@settings(max_examples=200)
@given(
    TEXTS.filter(bool).flatmap(
        lambda text: st.tuples(
            st.just(text),
            st.lists(
                st.lists(
                    st.tuples(st.integers(0, len(text) - 1), st.integers(1, 9)).map(
                        lambda pair: (pair[0], min(len(text), pair[0] + pair[1]))
                    ),
                    max_size=4,
                ),
                max_size=4,
            ),
        )
    )
)
def test_any_spans_can_be_resolved(case):
    text, clusters = case
    clusters = [[(a, b) for a, b in cluster if text[a:b].strip()] for cluster in clusters]
    resolved = resolved_text(text, clusters)
    assert resolved_text(text, [cluster[:1] for cluster in clusters]) == text
    covered = {at for cluster in clusters for start, end in cluster for at in range(start, end)}
    untouched = [text[at] for at in range(len(text)) if at not in covered]
    found = iter(resolved)
    assert all(sign in found for sign in untouched)  # in this order


@pytest.mark.parametrize("span", [(0, 0), (2, 1), (-1, 2), (0, 5), (1, 2)])
def test_an_impossible_mention_is_named(span):
    with pytest.raises(DataError, match=f"mention {span[0]}..{span[1]} is (not inside|white)"):
        resolved_text("a bc", [[span]])


def test_mentions_of_clusters_as_strings_and_places():
    document = from_text("d", "Ann ran.  She fell.")
    clusters = [[(0, 0), (3, 3)], [(1, 2)]]
    assert cluster_mentions(document, clusters) == [
        [Mention(0, 0, 0, 3, "Ann"), Mention(3, 3, 10, 13, "She")],
        [Mention(1, 2, 4, 8, "ran.")],
    ]
    assert resolved_document(document, clusters) == "Ann ran.  Ann fell."
    bare = Document("d", ("Ann", "ran", ".", "She"), (0, 0, 0, 1), clusters=(((0, 0), (3, 3)),))
    assert cluster_mentions(bare)[0][1] == Mention(3, 3, None, None, "She")
    assert with_text(bare) == ("Ann ran .\nShe", ((0, 3), (4, 7), (8, 9), (10, 13)))
    assert resolved_document(bare) == "Ann ran .\nAnn"


def test_baselines_by_string_and_by_head():
    text = "Ann saw the old dog . The dog saw Ann Lee and the old dog ; she saw her"
    words = text.split()
    clusters = (((0, 0), (9, 10)), ((2, 4), (6, 7), (12, 14)), ((16, 16), (18, 18)))
    document = Document("d", tuple(words), (0,) * 6 + (1,) * 13, clusters=clusters)
    mentions = string_coref.gold_mentions(document)
    assert mentions == [(0, 0), (2, 4), (6, 7), (9, 10), (12, 14), (16, 16), (18, 18)]
    assert string_coref.same_string(document, mentions) == (
        ((0, 0),),
        ((2, 4), (12, 14)),
        ((6, 7),),
        ((9, 10),),
        ((16, 16),),
        ((18, 18),),
    )
    assert string_coref.same_head(document, mentions)[1] == ((2, 4), (6, 7), (12, 14))
    twice = Document("d", ("He", "saw", "he"), (0, 0, 0))
    spans = [(2, 2), (0, 0), (0, 0)]
    assert string_coref.same_string(twice, spans) == (((0, 0), (2, 2)),)
    assert string_coref.same_head(twice, spans) == (((0, 0), (2, 2)),)
    assert string_coref.same_head(twice, spans, pronouns=False) == (((0, 0),), ((2, 2),))


def test_mentions_by_rule():
    text = "Dogs bark at Ann Lee. She likes dogs and his old friend. The man who came walked."
    document = from_text("d", text)
    found = [document.span_text(span) for span in string_coref.rule_mentions(document)]
    assert found == ["Ann Lee", "She", "his", "his old friend", "The man", "who"]
    assert string_coref.rule_mentions(Document("d", ("the",), (0,))) == []
