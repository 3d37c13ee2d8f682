"""From text to words and to the tokens that an encoder reads, each with its place. Free of torch.

>>> from spanbert_ext.text import units, words
>>> [text[start:end] for start, end in words(text := "\u674e\u660e\u53bb\u4e86Paris.")]
['\u674e', '\u660e', '\u53bb\u4e86', 'Paris', '.']
"""

from spanbert_ext.text.splitting import Span, is_unspaced, units, words
from spanbert_ext.text.tokens import Tokens, readable, token_ids, tokenise
from spanbert_ext.text.word_tokens import WordTokens, marks_blanks, tokenise_words

__all__ = [
    "Span",
    "Tokens",
    "WordTokens",
    "is_unspaced",
    "marks_blanks",
    "readable",
    "token_ids",
    "tokenise",
    "tokenise_words",
    "units",
    "words",
]
