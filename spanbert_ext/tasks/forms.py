"""What files of each task look like, for the help and for messages. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import dataclass

from spanbert_ext.tasks.classification.layouts import LAYOUTS

SQUAD = (
    '{"data": [{"paragraphs": [{"context": "Ada wrote it.", "qas": [{"id": "1", "question": '
    '"Who?", "answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": false}]}]}]}'
)
# The first two lines.
MRQA = (
    '{"header": {"dataset": "D", "split": "train"}}',
    '{"context": "Ada wrote it.", "qas": [{"qid": "1", "question": "Who?", "answers": ["Ada"], '
    '"detected_answers": [{"text": "Ada", "char_spans": [[0, 2]]}]}]}',
)
TACRED = (
    '[{"id": "1", "token": ["Ada", "met", "Babbage"], "subj_start": 0, "subj_end": 0, "obj_start": '
    '2, "obj_end": 2, "subj_type": "PERSON", "obj_type": "PERSON", "relation": "met"}, ...]'
)
CONLL = "a word and its tag on a line, such as Ada<TAB>B-PER, and a blank line between sentences"
# A document in words.
COREF = '{"sentences": [["Ada", "met", "Bo"], ["She", "left"]], "clusters": [[[0, 0], [3, 3]]]}'


@dataclass(frozen=True)
class Form:
    """The files of a task.

    Args:
        fields: of a record of `predict`, in lines.
        example: such a record, as its line of JSON.
        file: what files of training and evaluation hold, in lines.
    """

    fields: str
    example: str
    file: str


_QUESTION = (
    """\
question, context  texts
id                 comes back in the output (optional, like those below)
top_k              how many answers are written
answers            gold, {"text": [...], "answer_start": [...]} or a list of such""",
    '{"question": "Who wrote it?", "context": "Ada wrote it in 1843."}',
)
FORMS = {
    "squad": Form(*_QUESTION, SQUAD),
    "squad2": Form(*_QUESTION, SQUAD),
    "mrqa": Form(*_QUESTION, "\n".join(MRQA)),
    "coref": Form(
        """\
text       a text: mentions are [start, end) in characters
words      in its place a list of words, or
sentences  lists of words: mentions are first and last word, counted over all
speakers   with words, a name for each (optional, like those below)
genre      a code that the model knows
id         comes back in the output""",
        '{"text": "Ada met Charles. She liked him."}',
        f"""\
CoNLL-2012: #begin document (NAME); part 000, a word and its columns on a line with the word in
column 3 from 0 and the coreference in the last, #end document; or, in a file that ends in .jsonl,
lines such as {COREF}""",
    ),
    "tacred": Form(
        """\
text                           a text, with
subject, object                [start, end) of the two entities in characters
subject_type, object_type      names, where the model is shown types
token                          in its place a list of words, as TACRED has it, with
subj_start, subj_end,
obj_start, obj_end             first and last word of the two entities, from 0
subj_type, obj_type            names
id                             comes back in the output (optional)
relation                       gold (optional)""",
        '{"text": "Ada worked for Babbage.", "subject": [0, 3], "object": [15, 22], '
        '"subject_type": "PERSON", "object_type": "PERSON"}',
        TACRED,
    ),
    "ner": Form(
        """\
text   a text: entities are [start, end) in characters
words  in its place a list, ["Ada", "met", "Charles"]: they are in words
id     comes back in the output (optional)""",
        '{"text": "Ada met Charles in London."}',
        CONLL,
    ),
} | {
    name: Form(
        f"{' or '.join(' and '.join(texts) for texts in layout.texts)}\n"
        f"id and {layout.label[0]} are optional",
        json.dumps(dict.fromkeys(layout.texts[0], "It was a good film.")),
        f"columns parted by tabs under a header such as {layout.form()}",
    )
    for name, layout in LAYOUTS.items()
}
