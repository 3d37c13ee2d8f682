"""Places of tokens in a text, and the tokens of its words, for tokenizers of every kind."""

import functools
import pydoc_data.topics

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, tokenizer_of
from transformers import PreTrainedTokenizerFast

from spanbert_ext.errors import ConfigError
from spanbert_ext.text import (
    WordTokens,
    marks_blanks,
    readable,
    token_ids,
    tokenise,
    tokenise_words,
    units,
)

IN_CONTEXT = [kind for kind in KINDS if not kind.startswith("wordpiece")]
# These lose no character.
WHOLE = [kind for kind in KINDS if kind.startswith("byte") or kind == "unigram, as written"]
HARD = "e\u0301 \u0301 \u200d \u202e \0 \t\n \U0001f600\U0001f468\u200d\U0001f469 \ud83d \u00ad "
HARD += "\u0130\u00df \ufb01 \u2460 \uff21 \uac01 \u0e44\u0e21\u0e48 \u05e9\u05b8 \ufeff\u3000\x1c"
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(["Anna ", "lives", " in", " ", "  ", "(", "),", "n't ", "\u674e\u660e"]),
        st.sampled_from(HARD),
        st.characters(),
    ),
    max_size=30,
).map("".join)


def passage(text, treebank=False):
    offsets = units(text, treebank)
    return [text[start:end] for start, end in offsets], text, offsets


def shown(tokenizer, tokens: WordTokens):
    """The tokens of each word."""
    bounds = zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True)
    return [tokenizer.convert_ids_to_tokens(tokens.ids[a:b].tolist()) for a, b in bounds]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Without its repair the first letter of every word is missing: ives, as, n.
        ("byte-level, parted", "Anna lives |( not |) in Rome |."),
        ("byte-level, parted, whole offsets", "Anna lives ( ( not ) ) in Rome . ."),
        ("byte-level", "Anna | lives ( not ) in Rome ."),
        ("byte-level, whole offsets", "Anna | lives ( not ) in Rome ."),
        ("byte-level, prefix", "Anna | lives ( not ) in Rome ."),
        ("byte-level, prefix, whole offsets", "Anna | lives ( not ) in Rome ."),
        ("byte fallback", "Anna | lives ( not ) in Rome ."),
        ("wordpiece", "Anna lives ( not ) in Rome ."),
    ],
)
def test_places_typed_by_hand(kind, expected):
    text = "Anna  lives (not) in Rome."
    tokenizer = tokenizer_of(kind)
    found = tokenise([text], tokenizer)[text]
    # A bar is a token that is white space alone.
    written = [text[start:end] or "|" for start, end in found.offsets]
    assert " ".join(written) == expected.replace("|", "| ").replace("  ", " ")
    assert found.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_letters_of_other_lengths_keep_their_places():
    text = "\ufb01n \u2460\U0001f600 e\u0301s"
    found = tokenise([text], tokenizer_of("unigram"))[text]
    # A blank, f of the ligature, its i with n, a blank.
    assert found.offsets.tolist()[:4] == [[0, 1], [0, 1], [0, 2], [3, 3]]
    digit = tokenizer_of("unigram").convert_tokens_to_ids("1")
    assert found.offsets[found.ids.tolist().index(digit)].tolist() == [3, 4]
    for kind in ("byte-level", "byte fallback"):
        tokenizer = tokenizer_of(kind)
        found = tokenise([text], tokenizer)[text]
        smile = found.offsets[[text[a:b] == "\U0001f600" for a, b in found.offsets]]
        assert smile.tolist() == [[4, 5]] * 4  # a token for every byte


@settings(max_examples=60)
@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
def test_places_are_right_whatever_the_text(kind, text):
    found = tokenise([text], tokenizer_of(kind))[text]
    covered = np.zeros(len(text), bool)
    before = 0
    for start, end in found.offsets.tolist():
        assert before <= start <= end <= len(text)
        assert text[start:end] == text[start:end].strip()
        covered[start:end] = True
        before = start
    if kind in WHOLE:
        assert all(covered[n] for n, c in enumerate(readable(text)) if not c.isspace())


@functools.cache
def prose():
    return [*pydoc_data.topics.topics.values()][:16]


@pytest.mark.parametrize("kind", ["wordpiece", "wordpiece without accents"])
@pytest.mark.parametrize("treebank", [False, True])
def test_wordpiece_reads_each_word_as_it_is_alone(kind, treebank):
    tokenizer = tokenizer_of(kind)
    assert not marks_blanks(tokenizer)
    passages = [passage(text, treebank) for text in prose()]
    for (words, _, _), found in zip(passages, tokenise_words(passages, tokenizer), strict=True):
        expected = tokenizer(words, add_special_tokens=False)["input_ids"]
        assert found.ids.tolist() == [id for own in expected for id in own]
        assert np.diff(found.bounds).tolist() == list(map(len, expected))
        assert (found.first == found.bounds[:-1]).all()


@pytest.mark.parametrize("kind", IN_CONTEXT)
def test_others_read_the_text(kind):
    tokenizer = tokenizer_of(kind)
    assert marks_blanks(tokenizer)
    passages = [passage(text) for text in prose()[:8]]
    for (words, text, _), found in zip(passages, tokenise_words(passages, tokenizer), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert found.ids.tolist() == ids and len(found.first) == len(words)
    lists = [(words, None, None) for words, _, _ in passages]
    for (words, _, _), found in zip(passages, tokenise_words(lists, tokenizer), strict=True):
        assert (
            found.ids.tolist() == tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        )
        assert not found.shared.any()


@pytest.mark.parametrize("kind", KINDS)
def test_words_alone(kind):
    tokenizer = tokenizer_of(kind)
    words, text, offsets = passage("Anna lives (not) in Paris.")
    [found] = tokenise_words([(words, text, offsets)], tokenizer, blanks=False)
    expected = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert [found.of(n, n + 1).tolist() for n in range(len(words))] == expected


def test_words_of_a_text_typed_by_hand():
    tokenizer = tokenizer_of("byte-level")
    [found] = tokenise_words([passage("Anna  lives (not)\u674e\u660e\u3002")], tokenizer)
    assert shown(tokenizer, found)[:5] == [
        ["Anna"],
        ["\u0120", "\u0120lives"],
        ["\u0120("],
        ["not"],
        [")"],
    ]
    # The second word's first token is a blank.
    assert (found.first - found.bounds[:-1])[:5].tolist() == [0, 1, 0, 0, 0]
    # One token holds the first two characters.
    [found] = tokenise_words([passage("\u5317\u4eac\u3002")], tokenizer_of("byte-level, prefix"))
    assert found.shared.tolist()[1] and found.first[1] == found.bounds[1] - 1


def test_characters_of_a_list_are_read_as_a_text_without_blanks():
    for kind in ("byte-level", "unigram", "byte fallback"):
        tokenizer = tokenizer_of(kind)
        words = [*"\u674e\u660e\u53bb\u4e86", "Paris", "\u3002", "Anna", "lives"]
        [found] = tokenise_words([(words, None, None)], tokenizer)
        text = "\u674e\u660e\u53bb\u4e86Paris\u3002Anna lives"
        assert found.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_wordpiece_reads_a_run_without_blanks_as_one_word():
    """As the text itself: Thai is one word to it, of which each character is a piece."""
    tokenizer = tokenizer_of("wordpiece")
    text = "Anna \u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e, \u674e\u660e\u53bb\u4e86"
    words, _, offsets = passage(text)
    [found] = tokenise_words([(words, text, offsets)], tokenizer)
    assert found.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(words) > 8


def test_a_word_that_the_tokenizer_leaves_nothing_of():
    tokenizer = tokenizer_of("wordpiece")
    for words in (["Anna", "\x01", "in"], ["\x01"], ["\x01", "\x02"]):
        [found] = tokenise_words([(words, None, None)], tokenizer)
        assert np.diff(found.bounds).tolist() == [1] * len(words)
        assert found.ids[words.index("\x01")] == tokenizer.unk_token_id
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(
        ConfigError, match=r"leaves nothing of a word of '\\x01' and has no unknown"
    ):
        tokenise_words([(["\x01"], None, None)], bare)
    [found] = tokenise_words([(["a", "\x01", "b"], None, None)], bare, every_word=False)
    assert np.diff(found.bounds).tolist() == [1, 0, 1]


@settings(max_examples=60)
@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, alone=st.booleans(), listed=st.booleans())
@example(text="a\0b \x01 \u00ad\u200d\ufe0f \u0301", alone=False, listed=False)
def test_every_word_keeps_its_place(kind, text, alone, listed):
    tokenizer = tokenizer_of(kind)
    words, _, offsets = passage(text)
    given_text = (None, None) if listed else (text, offsets)
    [found] = tokenise_words([(words, *given_text)], tokenizer, blanks=not alone)
    bounds = found.bounds.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(found.ids) and bounds == sorted(bounds)
    assert len(bounds) == len(words) + 1
    for n, first in enumerate(found.first):
        if bounds[n] == bounds[n + 1]:
            assert n > 0 and first == bounds[n] - 1
        else:
            assert bounds[n] <= first < bounds[n + 1]
    plain = tokenizer(readable(text), add_special_tokens=False, return_offsets_mapping=True)
    if alone or listed or "parted" in kind or len(plain["input_ids"]) != len(found.ids):
        return
    # Its first token is the one that holds its first character, unless that begins before it.
    for n, (start, _) in enumerate(offsets):
        token = plain.char_to_token(0, start)
        if token is not None and found.first[n] != token:
            begin, end = plain["offset_mapping"][token]
            assert end - len(text[begin:end].lstrip()) < start


def test_a_word_of_more_tokens_than_fit():
    tokens = WordTokens(np.arange(9), np.array([0, 2, 7, 7, 9]), np.array([0, 4, 6, 7]))
    cut = tokens.shortened(2)
    # The blanks of the second word go first, then its end.
    assert cut.ids.tolist() == [0, 1, 4, 5, 7, 8]
    assert cut.bounds.tolist() == [0, 2, 4, 4, 6] and cut.first.tolist() == [0, 2, 3, 4]
    assert tokens.shortened(5) is tokens
    assert cut.shared.tolist() == [False, False, True, False]


def test_tokens_begin_at_edges():
    tokenizer = tokenizer_of("byte-level")
    text = "Anna in \u674e\u660e\u53bb\u4e86\u5317\u4eac Rome"
    words, _, offsets = passage(text)
    assert words[:3] == ["Anna", "in", "\u674e"]
    [whole] = tokenise_words([(words, text, offsets)], tokenizer)
    assert whole.shared.any()
    [found] = tokenise_words([(words, text, offsets)], tokenizer, edges=[{4, 6}])
    assert not found.shared[[4, 6]].any()
    parts = ["Anna in \u674e\u660e", "\u53bb\u4e86", "\u5317\u4eac Rome"]
    ids = [id for part in parts for id in tokenizer(part, add_special_tokens=False)["input_ids"]]
    assert found.ids.tolist() == ids
    # Where none reaches over an edge, the text stays whole.
    [found] = tokenise_words([(words, text, offsets)], tokenizer, edges=[{1, 2}])
    assert found.ids.tolist() == whole.ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_read_as_the_replacement_character(kind):
    tokenizer = tokenizer_of(kind)
    text, same = "Anna \ud83d in \udc00", "Anna \ufffd in \ufffd"
    assert readable(text) == same
    assert (
        token_ids([text], tokenizer)[text].tolist() == token_ids([same], tokenizer)[same].tolist()
    )
    found, other = tokenise([text], tokenizer)[text], tokenise([same], tokenizer)[same]
    assert (found.offsets == other.offsets).all() and (found.ids == other.ids).all()
    one, two = tokenise_words([passage(text), passage(same)], tokenizer)
    assert (one.ids == two.ids).all() and (one.bounds == two.bounds).all()
