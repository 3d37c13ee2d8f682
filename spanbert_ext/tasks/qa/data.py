"""Examples of question answering, and the SQuAD 1.1 and 2.0 files they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spanbert_ext.errors import DataError
from spanbert_ext.records import fields_of, read_json, shown_value
from spanbert_ext.tasks.forms import SQUAD
from spanbert_ext.tasks.gold_fields import missing_gold
from spanbert_ext.tasks.rejects import Rejects

_KNOWN = ("id", "question", "is_impossible", "plausible_answers")


@dataclass(frozen=True, slots=True)
class QAExample:
    """A question, the context that may answer it and, where known, the answers.

    Args:
        id: of the question, unique in its file.
        question, context: as they are in the file.
        answers: texts with their first characters in the context; training uses the first.
        is_impossible: the context does not answer the question; None where nobody says.
        golds: texts that count as right; empty where there is none or none is known.
        top_k: answers wanted; None: as the task's options say.
        max_answer: pieces of the longest answer; None: as the task's options say.
        whole_words: answers are widened to the tokenizer's words.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()
    is_impossible: bool | None = None
    golds: tuple[str, ...] = ()
    top_k: int | None = None
    max_answer: int | None = None
    whole_words: bool = False


class Unusable(ValueError):
    """Why a record cannot be used.

    Args:
        reason: in words.
        excerpt: the start of what is wrong.
    """

    def __init__(self, reason: str, excerpt: str = ""):
        super().__init__(reason)
        self.reason, self.excerpt = reason, excerpt


def read_squad(
    path: str | Path, rejects: Rejects, task: Literal["squad", "squad2"]
) -> list[QAExample]:
    """The questions of a SQuAD file, in its order.

    Args:
        path: JSON: data[] -> paragraphs[] -> {context, qas[] -> {id, question, answers[] ->
            {text, answer_start}, is_impossible (2.0)}}.
        rejects: what becomes of questions that cannot be used.
        task: squad reads version 1.1, squad2 version 2.0.

    Raises:
        DataError: no SQuAD file, or `rejects` says so.
    """
    examples: list[QAExample] = []
    seen: set[str] = set()
    for place, context, record in _questions(path, rejects):
        where = f"{path}: {place}"
        try:
            example = _squad_example(record, context, task)
            if example.id in seen:
                raise Unusable("the id occurs before", example.question)
        except Unusable as fault:
            rejects.add(shown_id(record, place), where, fault.reason, fault.excerpt)
            continue
        seen.add(example.id)
        examples.append(example)
    rejects.check(path, len(examples))
    return examples


def text_of(record: dict[str, Any], name: str) -> str:
    """A field that must hold text.

    Raises:
        Unusable: it is missing, no text, empty or not Unicode.
    """
    if name not in record:
        raise Unusable(f"no field {name!r}; fields there: {fields_of(record)}")
    return checked_text(record[name], name)


def checked_text(text: Any, name: str) -> str:
    """What must be text that is not empty; `Unusable` where it is not."""
    if not isinstance(text, str):
        raise Unusable(f"{name}: expected text, got {type(text).__name__}", repr(text))
    if not text.strip():
        raise Unusable(f"{name}: is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Unusable(f"{name}: half a surrogate pair at character {error.start}") from None
    return text


def id_of(record: dict[str, Any], name: str = "id") -> str:
    """The id, which may be a number in the file; `Unusable` where it is neither that nor text."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Unusable(f"no field {name!r} with text in it", repr(value))
    return str(value)


def shown_id(record: Any, place: str, name: str = "id") -> str:
    """What a message calls a record: its id, or its place where it has none."""
    try:
        return id_of(record, name) if isinstance(record, dict) else place
    except Unusable:
        return place


def located_answers(value: Any, context: str) -> tuple[tuple[str, int], ...]:
    """Answers with their places, each checked against the context.

    Args:
        value: list of {text, answer_start}, or {text: [...], answer_start: [...]}.

    Raises:
        Unusable: another layout, or the text is not at its place.
    """
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise Unusable("answers: expected lists text and answer_start of one length")
        value = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    if not isinstance(value, list) or not all(isinstance(answer, dict) for answer in value):
        raise Unusable("answers: expected a list of {text, answer_start}", repr(value))
    found = []
    for answer in value:
        text, start = text_of(answer, "text"), answer.get("answer_start")
        if isinstance(start, bool) or not isinstance(start, int):
            raise Unusable(f"answer_start: expected a whole number, got {start!r}", text)
        if start < 0 or context[start : start + len(text)] != text:
            there = context[start : start + len(text)] if 0 <= start < len(context) else None
            found_there = "no such place" if there is None else f"{there[:40]!r} is there"
            raise Unusable(
                f"the answer is not at character {start} of a context of {len(context)}: "
                f"{found_there}",
                text,
            )
        found.append((text, start))
    return tuple(found)


def _squad_example(record: Any, context: Any, task: str) -> QAExample:
    if not isinstance(record, dict):
        raise Unusable("expected an object", repr(record))
    flag = record.get("is_impossible")
    if flag is not None and not isinstance(flag, bool):
        raise Unusable(f"is_impossible: expected true or false, got {flag!r:.40}")
    if task == "squad" and flag:
        raise Unusable(
            "is_impossible is true, so this is SQuAD 2.0: the task squad2 reads it; squad reads "
            "questions that all have an answer"
        )
    if task == "squad2" and flag is None and "answers" in record:
        raise Unusable(
            "is_impossible (true or false) is missing, so this is no SQuAD 2.0: the task squad "
            "reads SQuAD 1.1"
        )
    name, question = id_of(record), text_of(record, "question")
    context = checked_text(context, "context")
    if "answers" not in record:
        form = '"answers": [{"text": "Ada", "answer_start": 0}]'
        raise Unusable(missing_gold(record, "answers", form, _KNOWN), question)
    answers = located_answers(record["answers"], context)
    if flag and answers:
        raise Unusable("is_impossible is true but there are answers", answers[0][0])
    if not flag and not answers:
        raise Unusable("there is no answer", question)
    if task == "squad":
        flag = None
    return QAExample(name, question, context, answers, flag, tuple(text for text, _ in answers))


def _questions(path: str | Path, rejects: Rejects) -> Iterator[tuple[str, Any, Any]]:
    """(place, context, question) of each question; nothing is checked but the layout."""
    for a, article in enumerate(_data(path)):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            reason = f"no list 'paragraphs', it is {shown_value(article)}; expected {SQUAD}"
            rejects.add(f"data[{a}]", f"{path}: data[{a}]", reason)
            continue
        for p, paragraph in enumerate(paragraphs):
            place = f"data[{a}].paragraphs[{p}]"
            questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(questions, list):
                reason = f"no list 'qas', it is {shown_value(paragraph)}; expected {SQUAD}"
                rejects.add(place, f"{path}: {place}", reason)
                continue
            for q, question in enumerate(questions):
                yield f"{place}.qas[{q}]", paragraph.get("context"), question


def _data(path: str | Path) -> list:
    content = read_json(path, f"a SQuAD file, {SQUAD}; files of MRQA are read by the task mrqa")
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise DataError(
            f"{path}: no list 'data' in it, it is {shown_value(content)}. Expected a SQuAD file, "
            f"{SQUAD}"
        )
    return data
