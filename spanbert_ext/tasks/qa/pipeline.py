"""Answers from Python: what the question answering pipeline of transformers was, before 5.3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanbert_ext.errors import ConfigError, DataError
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.qa.decode import Answer
from spanbert_ext.tasks.qa.task import QATask

if TYPE_CHECKING:
    from spanbert_ext.tasks.predictor import Predictor


class ExtractiveQA:
    """Answers questions with stretches of a context of any length.

    >>> qa = ExtractiveQA("runs/squad")
    >>> qa(question="Who wrote it?", context="Ada wrote it in 1843.")
    {'score': 0.98, 'start': 0, 'end': 3, 'answer': 'Ada'}

    Args:
        model: folder or hub name of a fine-tuned model, or a `Predictor`. A question answering
            model of transformers that was not fine-tuned here is taken as trained on SQuAD 1.1.
        device: as `Predictor.load`.

    Raises:
        DataError: it is no question answering model.
    """

    def __init__(self, model: str | Path | Predictor, device: str = "auto"):
        if isinstance(model, str | Path):
            from spanbert_ext.tasks.predictor import Predictor

            model = Predictor.load(model, device=device, default=default_task, fine_tune="squad")
        if not isinstance(model.task, QATask):
            raise DataError(
                f"the model was fine-tuned for {model.task.name}, not for question answering "
                "(squad, squad2, mrqa); fine-tune one with spanbert finetune squad"
            )
        self.predictor = model

    @property
    def task(self) -> QATask:
        """The task with its options and threshold."""
        return self.predictor.task

    def __call__(
        self,
        question: str | Sequence[str] | dict | Sequence[dict] | None = None,
        context: str | Sequence[str] | None = None,
        *,
        inputs: dict | Sequence[dict] | None = None,
        top_k: int = 1,
        handle_impossible_answer: bool | None = None,
        max_answer_len: int | None = None,
        align_to_words: bool = True,
    ) -> dict[str, Any] | list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Answer a question or several.

        Args:
            question, context: texts, or lists of equal length; several questions may share one
                context. `question` also takes what `inputs` does.
            inputs: {"question", "context"} or a list of such; each may have its own "top_k".
            top_k: answers to a question, as many as there are different ones.
            handle_impossible_answer: whether "no answer" may be one; None: if the model was trained
                on SQuAD 2.0. It comes first where the stored threshold says so.
            max_answer_len: pieces of the longest answer; None: as the model's options say.
            align_to_words: widen answers to whole words of the tokenizer.

        Returns:
            {"score", "start", "end", "answer"}, score a probability and
            `context[start:end] == answer`; a list of them, best first, where top_k is not 1; a list
            of results for lists, also for those of one question. "No answer", and the answer in a
            context without anything to read, is "" at (0, 0).

        Raises:
            DataError: a question or a context is missing, empty or no text.
            ConfigError: a setting is impossible.
        """
        records, single = _records(question, context, inputs)
        if max_answer_len is not None:
            _check_count("max_answer_len", max_answer_len)
        examples = [
            _example(record, f"question {n}", top_k, max_answer_len, align_to_words)
            for n, record in enumerate(records)
        ]
        results = []
        for example, prediction in zip(examples, self.predictor(examples), strict=True):
            answers = self.task.ranked(prediction, example.top_k, handle_impossible_answer)
            found = [_result(answer) for answer in answers]
            results.append(found[0] if example.top_k == 1 else found)
        return results[0] if single else results


def default_task(config: Any) -> QATask:
    """The task of a model of transformers that says nothing about its own.

    Args:
        config: of the model; sequences are as long as its positions allow, at most 384.
    """
    positions = getattr(config, "max_position_embeddings", None) or QAOptions.length
    # The models of this family number positions from behind the padding token.
    if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= (config.pad_token_id or 0) + 1
    return QATask("squad", QAOptions(length=min(QAOptions.length, positions)))


def _records(question: Any, context: Any, inputs: Any) -> tuple[list, bool]:
    """The questions as dicts, and whether one was asked by itself."""
    if inputs is None and context is None:
        question, inputs = None, question
    if inputs is not None:
        if question is not None or context is not None:
            raise DataError("give either question and context, or inputs")
        return ([inputs], True) if isinstance(inputs, dict) else (_listed(inputs, "inputs"), False)
    if question is None:
        raise DataError("there is no question; give question and context, or inputs")
    if isinstance(question, str):
        if isinstance(context, str):
            return [{"question": question, "context": context}], True
        question = [question] * len(_listed(context, "context"))
    elif isinstance(context, str):
        context = [context] * len(_listed(question, "question"))
    questions, contexts = _listed(question, "question"), _listed(context, "context")
    if len(questions) != len(contexts):
        raise DataError(f"{len(questions)} questions, but {len(contexts)} contexts")
    pairs = zip(questions, contexts, strict=True)
    return [{"question": q, "context": c} for q, c in pairs], False


def _listed(value: Any, name: str) -> list:
    if value is None or isinstance(value, str | bytes | dict) or not hasattr(value, "__iter__"):
        raise DataError(
            f"{name}: expected question and context, or dicts with both; got {type(value).__name__}"
        )
    return list(value)


def _example(
    record: Any, where: str, top_k: int, max_answer: int | None, whole_words: bool
) -> QAExample:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a dict with question and context, got {record!r:.80}")
    for field in ("question", "context"):
        text = record.get(field)
        if not isinstance(text, str) or not text.strip():
            found = "it is empty" if isinstance(text, str) else f"got {type(text).__name__}"
            raise DataError(f"{where}: {field}: expected text that is not empty; {found}")
    wanted = record.get("top_k", top_k)
    _check_count("top_k", wanted)
    return QAExample(
        id=where,
        question=record["question"],
        context=record["context"],
        top_k=wanted,
        max_answer=max_answer,
        whole_words=whole_words,
    )


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: must be a whole number from 1 on; got {value!r}")


def _result(answer: Answer) -> dict[str, Any]:
    return {
        "score": answer.score,
        "start": answer.start,
        "end": answer.end,
        "answer": answer.text,
    }
