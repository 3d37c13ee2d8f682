"""SQuAD 1.1, SQuAD 2.0 and MRQA for the machinery that trains, evaluates and predicts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spanbert_ext.errors import DataError
from spanbert_ext.files import json_text, write_text
from spanbert_ext.tasks.marked_text import Mark, MarkedText
from spanbert_ext.tasks.qa import data, decode, features, metrics, mrqa
from spanbert_ext.tasks.qa.config import QAOptions
from spanbert_ext.tasks.qa.data import QAExample
from spanbert_ext.tasks.qa.decode import NO_ANSWER, Answer, QAPrediction
from spanbert_ext.tasks.rejects import Rejects
from spanbert_ext.tasks.task import DownstreamTask, Feature

logger = logging.getLogger("spanbert_ext")


class QATask(DownstreamTask[QAExample, QAPrediction]):
    """Extractive question answering.

    Args:
        name: squad (1.1), squad2 (2.0: there may be no answer) or mrqa.
        options: how sequences and answers are made.
        facts: squad2: null_threshold, above which difference of scores there is no answer, and the
            scores it reached; chosen by `tune`.
    """

    head = "question-answering"

    def __init__(self, name: str, options: QAOptions, facts: dict[str, Any] | None = None):
        super().__init__(name, options, facts)
        self.best_metric = "best_f1" if name == "squad2" else "f1"
        self._warned = False

    @property
    def null_threshold(self) -> float:
        """Difference of scores above which there is no answer; 0 if none was chosen."""
        return float(self.facts.get("null_threshold", 0.0))

    def read(self, path: str | Path, rejects: Rejects) -> list[QAExample]:
        """The questions of a SQuAD or MRQA file; see `read_squad` and `read_mrqa`."""
        if self.name == "mrqa":
            return mrqa.read_mrqa(path, rejects, self.options.half)
        return data.read_squad(path, rejects, self.name)

    def parse(self, record: dict[str, Any], where: str) -> QAExample:
        """A question of `predict`: {question, context}, and where wanted id, top_k, answers as in
        SQuAD and is_impossible."""
        try:
            context = data.text_of(record, "context")
            given = record.get("answers")
            answers = data.located_answers(given or [], context)
            flag, top_k = record.get("is_impossible"), record.get("top_k")
            if flag is not None and not isinstance(flag, bool):
                raise data.Unusable(f"is_impossible: expected true or false, got {flag!r:.40}")
            if top_k is not None and (type(top_k) is not int or top_k < 1):
                raise data.Unusable(f"top_k: expected a number from 1 on, got {top_k!r}")
            return QAExample(
                id=where if record.get("id") is None else data.id_of(record),
                question=data.text_of(record, "question"),
                context=context,
                answers=answers,
                is_impossible=bool(flag) if self.name == "squad2" and flag is not None else None,
                golds=tuple(text for text, _ in answers),
                top_k=top_k,
            )
        except data.Unusable as fault:
            shown = f" ({fault.excerpt[:80]!r})" if fault.excerpt else ""
            raise DataError(
                f"{where}: {fault.reason}{shown}; a record needs question and context"
            ) from None

    def learn(self, examples: Sequence[QAExample], tokenizer: Any) -> None:
        """Nothing is learned; the examples must have answers."""
        if not any(example.answers for example in examples):
            raise DataError(
                "none of the training examples has an answer with a place in its context: nothing "
                "can be learned from them"
            )

    def labels(self) -> list[str]:
        """None: the head's outputs are start and end."""
        return []

    def features(self, examples: Sequence[QAExample], tokenizer: Any) -> list[Feature]:
        """The windows of each example."""
        return features.features_of(examples, tokenizer, self.options)

    def decode(
        self,
        examples: Sequence[QAExample],
        features: Sequence[Feature],
        outputs: Sequence[np.ndarray],
    ) -> list[QAPrediction]:
        """The best answers over all windows of each example."""
        return decode.decode(examples, features, outputs, self.options)

    def tune(self, examples: Sequence[QAExample], predictions: Sequence[QAPrediction]) -> None:
        """Choose the threshold with the best F1."""
        if self.name == "squad2" and examples:
            scores = self._squad2_scores(examples, predictions)
            self.facts["null_threshold"] = scores["best_f1_thresh"]
            self.facts |= {name: scores[name] for name in ("best_f1", "best_exact")}

    def trivial_predictions(self, examples: Sequence[QAExample]) -> tuple[str, list[QAPrediction]]:
        """No answer to any question."""
        return "never answering", [QAPrediction((), 1.0, 0.0) for _ in examples]

    def score(
        self, examples: Sequence[QAExample], predictions: Sequence[QAPrediction]
    ) -> dict[str, float]:
        """`exact` and `f1` in percent; for squad2 also HasAns_*, NoAns_* and best_*.

        squad2 replaces answers by "no answer" above the stored threshold, 0 if none is stored.
        """
        if self.name != "squad2":
            return metrics.squad_scores([e.golds for e in examples], _texts(predictions))
        unanswerable = any(not example.golds for example in examples)
        if "null_threshold" not in self.facts and unanswerable and not self._warned:
            self._warned = True
            logger.warning(
                "there are questions without an answer, but the model stores no threshold for them "
                "(null_threshold); 0 is used. Fine-tuning with a development file chooses one"
            )
        return self._squad2_scores(examples, predictions)

    def _squad2_scores(
        self, examples: Sequence[QAExample], predictions: Sequence[QAPrediction]
    ) -> dict[str, float]:
        diffs = [prediction.score_diff for prediction in predictions]
        golds = [example.golds for example in examples]
        return metrics.squad2_scores(golds, _texts(predictions), diffs, self.null_threshold)

    def says_no_answer(self, prediction: QAPrediction) -> bool:
        """Whether the scores of a squad2 model mean that there is no answer."""
        return not prediction.answers or prediction.score_diff > self.null_threshold

    def ranked(
        self, prediction: QAPrediction, count: int, may_be_none: bool | None = None
    ) -> list[Answer]:
        """The best answers, with their probabilities; "no answer" is `Answer(0, 0, "", ...)`.

        Args:
            count: as many, if there are so many.
            may_be_none: whether "no answer" is one of them: first if the threshold says so, else by
                its probability but never first; None: as the task is squad2. Where the context has
                nothing to read it is the only one, with probability 0 if it may not be one.
        """
        may_be_none = self.name == "squad2" if may_be_none is None else may_be_none
        if not prediction.answers:
            return [Answer(0, 0, "", 1.0 if may_be_none else 0.0)]
        if not may_be_none:
            return list(prediction.answers[:count])
        share = 1 - prediction.null_score
        answers = [
            Answer(a.start, a.end, a.text, a.score * share) for a in prediction.answers[:count]
        ]
        place = 0
        if not self.says_no_answer(prediction):
            place = max(1, sum(answer.score >= prediction.null_score for answer in answers))
        answers.insert(place, Answer(0, 0, "", prediction.null_score))
        return answers[:count]

    def as_json(self, example: QAExample, prediction: QAPrediction) -> dict[str, Any]:
        """answer, start, end, score; for squad2 no_answer and score_diff; n_best if more than one
        answer is wanted."""
        wanted = self.options.top_k if example.top_k is None else example.top_k
        ranked = self.ranked(prediction, wanted)
        line = _json_of(ranked[0])
        if self.name == "squad2":
            line |= {
                "no_answer": self.says_no_answer(prediction),
                "score_diff": prediction.score_diff,
            }
        if wanted > 1:
            line["n_best"] = [_json_of(answer) for answer in ranked]
        return line

    def marked(self, example: QAExample, prediction: QAPrediction) -> MarkedText:
        """The context with the best answer."""
        wanted = self.options.top_k if example.top_k is None else example.top_k
        best, *others = self.ranked(prediction, wanted)
        marks = ()
        if best.text:
            marks = (Mark(best.start, best.end, "answer", note=f"{best.score:.3f}"),)
        facts = [("answer", _shown(best))]
        if self.name == "squad2":
            facts.append(("no answer minus answer", f"{prediction.score_diff:.2f}"))
        facts += [(f"answer {n}", _shown(answer)) for n, answer in enumerate(others, 2)]
        return MarkedText(example.question, example.context, marks, tuple(facts))

    def write_predictions(
        self, path: Path, examples: Sequence[QAExample], predictions: Sequence[QAPrediction]
    ) -> list[Path]:
        """{id: text} as the official scorers read it, the best answer to each question.

        squad2 writes two files more. NAME_na.json has the scores of no answer minus those of the
        best one, in an order that lets evaluate-v2.0.py with --na-prob-file find `best_exact` and
        `best_f1` exactly; with --na-prob-thresh of the stored threshold it gives `exact` and `f1`.
        NAME_thresholded.json has "" where the threshold says that there is no answer: without the
        differences it gives `exact` and `f1` too.
        """
        path = Path(path)
        texts = _texts(predictions)
        if self.name != "squad2":
            return [_write_json(path, dict(_by_id(examples, texts)))]
        # To a scorer an answer without words is none, but for its search of a threshold.
        texts = [text if metrics.normalise(text) else "" for text in texts]
        diffs = [prediction.score_diff for prediction in predictions]
        order = metrics.search_order([e.golds for e in examples], texts, diffs)
        final = [
            "" if self.says_no_answer(p) else text
            for p, text in zip(predictions, texts, strict=True)
        ]
        return [
            _write_json(path, dict(_by_id(examples, texts))),
            _write_json(
                path.with_name(f"{path.stem}_na.json"),
                {examples[n].id: diffs[n] for n in order},
            ),
            _write_json(
                path.with_name(f"{path.stem}_thresholded.json"), dict(_by_id(examples, final))
            ),
        ]

    def plot(
        self, path: Path, examples: Sequence[QAExample], predictions: Sequence[QAPrediction]
    ) -> None:
        """Scores of right and of wrong answers: probabilities; for squad2 the differences of scores
        with the threshold."""
        from spanbert_ext.tasks.plots import score_plot

        scores: tuple[list[float], list[float]] = [], []
        for example, prediction in zip(examples, predictions, strict=True):
            (answer,) = self.ranked(prediction, 1)
            golds = example.golds or ("",)
            wrong = not any(metrics.exact(answer.text, gold) for gold in golds)
            scores[wrong].append(prediction.score_diff if self.name == "squad2" else answer.score)
        threshold, quantity = None, "probability of the answer"
        if self.name == "squad2":
            threshold = self.null_threshold
            quantity = "score of no answer minus that of the best answer"
        title = f"{self.name}: answers, right where they match exactly"
        score_plot(*scores, path, threshold, quantity, title)


def _texts(predictions: Sequence[QAPrediction]) -> list[str]:
    """The best answers, whatever the threshold."""
    return [(p.answers[0] if p.answers else NO_ANSWER).text for p in predictions]


def _json_of(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "start": answer.start,
        "end": answer.end,
        "score": answer.score,
    }


def _shown(answer: Answer) -> str:
    return f"{answer.text or 'no answer'} ({answer.score:.3f})"


def _by_id(examples: Sequence[QAExample], texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip((example.id for example in examples), texts, strict=True)


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    write_text(path, json_text(content) + "\n")
    return path
