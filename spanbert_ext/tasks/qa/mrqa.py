"""Files of the MRQA 2019 shared task, and the halves of their development sets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from spanbert_ext.errors import DataError
from spanbert_ext.records import UnreadableLine, read_objects, shown_value
from spanbert_ext.tasks.forms import MRQA
from spanbert_ext.tasks.gold_fields import missing_gold
from spanbert_ext.tasks.qa.data import QAExample, Unusable, id_of, shown_id, text_of
from spanbert_ext.tasks.rejects import Rejects

_HALVES = {"dev": 0, "test": 1}


def mrqa_half(question: str, context: str) -> int:
    """Which half of an MRQA development set a question belongs to: 0 development, 1 test.

    The paper (section 4.1) halves the development sets without saying how. The rule here: BLAKE2b
    with a digest of 8 bytes over the UTF-8 bytes of the question, one zero byte and the UTF-8 bytes
    of the context; the half is the lowest bit of the digest's first byte. So it depends neither on
    the order of a file nor on ids, which differ between releases of the sets.
    """
    both = f"{question}\0{context}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(both, digest_size=8).digest()[0] & 1


def read_mrqa(
    path: str | Path, rejects: Rejects, half: Literal["all", "dev", "test"] = "all"
) -> list[QAExample]:
    """The questions of an MRQA file, in its order.

    All occurrences of all detected answers are sorted by place; training uses the first. Markers in
    the context ([TLE], [DOC], [PAR]) are text like any other.

    Args:
        path: JSON lines, gzip or plain: {"header": {dataset, split}}, then {context, qas[] -> {qid,
            question, answers[], detected_answers[] -> {text, char_spans[] -> [first, last]}}}, the
            last character included.
        rejects: what becomes of questions that cannot be used, and of a missing header.
        half: questions that are returned, by `mrqa_half`; a file whose header says train is
            returned whole.

    Raises:
        DataError: the file cannot be read to its end, or `rejects` says so.
    """
    examples: list[QAExample] = []
    seen: set[str] = set()
    split, first = None, True
    for number, record in read_objects(path):
        where = f"{path}:{number}"
        if isinstance(record, UnreadableLine):
            rejects.add(f"line {number}", where, record.reason, record.excerpt)
            continue
        header = record.get("header") if first else None
        if isinstance(header, dict):
            split = header.get("split")
        elif first:
            rejects.add(
                "header",
                where,
                'the first line is not {"header": {"dataset": ..., "split": ...}}, it is '
                f"{shown_value(record)}; the tasks squad and squad2 read SQuAD files",
            )
        first = False
        if header is not None:
            continue
        _add_questions(record, where, examples, seen, rejects)
    rejects.check(path, len(examples))
    return examples if split == "train" else _half_of(examples, path, half)


def _half_of(examples: list[QAExample], path: str | Path, half: str) -> list[QAExample]:
    if half == "all":
        return examples
    chosen = [e for e in examples if mrqa_half(e.question, e.context) == _HALVES[half]]
    if not chosen:
        raise DataError(
            f"{path}: none of its {len(examples)} questions is in the {half} half; take another "
            "qa.half"
        )
    return chosen


def _add_questions(
    record: dict[str, Any],
    where: str,
    examples: list[QAExample],
    seen: set[str],
    rejects: Rejects,
) -> None:
    questions = record.get("qas")
    if not isinstance(questions, list):
        expected = MRQA[1]
        rejects.add(
            where, where, f"no list 'qas', it is {shown_value(record)}; expected {expected}"
        )
        return
    for q, question in enumerate(questions):
        try:
            example = _example(question, record)
            if example.id in seen:
                raise Unusable("the qid occurs before", example.question)
        except Unusable as fault:
            name = shown_id(question, f"qas[{q}]", "qid")
            rejects.add(name, where, fault.reason, fault.excerpt)
            continue
        seen.add(example.id)
        examples.append(example)


def _example(question: Any, record: dict[str, Any]) -> QAExample:
    if not isinstance(question, dict):
        raise Unusable("expected an object", repr(question))
    name, text, context = id_of(question, "qid"), text_of(question, "question"), None
    context = text_of(record, "context")
    detected = question.get("detected_answers", [])
    if not isinstance(detected, list):
        raise Unusable("detected_answers: expected a list", repr(detected))
    spans = sorted({span for answer in detected for span in _spans(answer, context)})
    answers = tuple((context[first : last + 1], first) for first, last in spans)
    golds = question.get("answers", [answer.get("text") for answer in detected])
    if not isinstance(golds, list) or not all(isinstance(gold, str) for gold in golds):
        raise Unusable("answers: expected a list of texts", repr(golds))
    if not golds:
        form = '"answers": ["Ada"]'
        known = ("qid", "id", "question", "question_tokens", "answers", "detected_answers")
        there = "answers" in question or "detected_answers" in question
        reason = "" if there else f": {missing_gold(question, 'answers', form, known)}"
        raise Unusable(f"there is no answer{reason}", text)
    return QAExample(name, text, context, answers, golds=tuple(golds))


def _spans(answer: Any, context: str) -> list[tuple[int, int]]:
    """First and last character of each occurrence."""
    spans = answer.get("char_spans") if isinstance(answer, dict) else None
    if not isinstance(spans, list):
        raise Unusable("detected_answers: expected objects with a list char_spans", repr(answer))
    found = []
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)):
            raise Unusable("char_spans: expected pairs of characters", repr(span))
        first, last = span
        if not 0 <= first <= last < len(context):
            raise Unusable(
                f"char_spans: [{first}, {last}] lies outside a context of {len(context)} "
                "characters (both ends belong to it)",
                str(answer.get("text")),
            )
        if not context[first : last + 1].strip():
            raise Unusable(f"char_spans: nothing but white space at [{first}, {last}]")
        found.append((first, last))
    return found
