"""`python -m benchmarks.finetuning --model BERT --train SQUAD --dev SQUAD`: what it costs to
fine-tune and to predict, beside what a user of transformers would write.

* train: seconds of an update with the same questions in every batch, ours and transformers'
  Trainer, whose features are padded to the maximum (the usual recipe) or to the longest of the
  batch; bf16 autocast everywhere;
* predict: questions a second from texts to answers, ours and a plain loop over padded windows.

Variants take turns in one process; the first turn is not counted. A machine's speed may change from
minute to minute: the ratio of predictions is the median over pairs of neighbouring turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.installed import prefer_installed

prefer_installed()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import environment, records  # noqa: E402
from spanbert_ext.tasks.batching import FeatureBatches, TrainingOrder  # noqa: E402
from spanbert_ext.tasks.config import FinetuneConfig, FinetuneOptimizer  # noqa: E402
from spanbert_ext.tasks.models import start_model  # noqa: E402
from spanbert_ext.tasks.packed_objective import PackedObjective  # noqa: E402
from spanbert_ext.tasks.predictor import Predictor  # noqa: E402
from spanbert_ext.tasks.qa.config import QAOptions  # noqa: E402
from spanbert_ext.tasks.qa.task import QATask  # noqa: E402
from spanbert_ext.tasks.registry import settings_class  # noqa: E402
from spanbert_ext.tasks.rejects import Rejects  # noqa: E402
from spanbert_ext.training.loop import HostStep, LoopSettings  # noqa: E402
from spanbert_ext.training.optimizer import build_optimizer  # noqa: E402
from spanbert_ext.weights.sources import open_start  # noqa: E402

COLUMNS = (*records.COLUMNS, "value", "unit")
LENGTH, OVERLAP, BATCH, MAX_ANSWER, N_BEST = 256, 64, 16, 30, 20
CPU = torch.device("cpu")


class OwnTraining:
    """Updates of ours, on batches of `spanbert finetune`'s order."""

    def __init__(self, model: str, task: QATask, features: Sequence[Any], ids: Sequence[str]):
        with open_start(model) as start:
            self.model, _ = start_model(start, task.head, [], 0)
        self.model.train()
        order = TrainingOrder(np.array([len(f.input_ids) for f in features]), BATCH, seed=0)
        settings = settings_class(FinetuneConfig, task.name)
        own = PackedObjective(settings(model, ["train"]))
        own.data = FeatureBatches(features, task.head, order, 1 << 20, 0, CPU, ids)
        optimizer = build_optimizer(self.model, FinetuneOptimizer(peak_lr=1e-4))
        numbers = LoopSettings(10_000, 1e-4, 100, 1.0, "bf16", 1)
        self._step = HostStep(self.model, optimizer, own, numbers)

    def seconds(self, first: int, count: int) -> list[float]:
        """Of `count` updates."""
        found = []
        for step in range(first, first + count):
            began = time.perf_counter()
            self._step(step)
            found.append(time.perf_counter() - began)
        return found


class _Clock(TrainerCallback):
    def __init__(self):
        self.moments: list[float] = []

    def on_step_begin(self, *_arguments, **_named):
        self.moments.append(-time.perf_counter())

    def on_step_end(self, *_arguments, **_named):
        self.moments[-1] += time.perf_counter()


class TrainerTraining:
    """Updates of transformers' Trainer on the same features.

    Args:
        to_maximum: pad to LENGTH, else to the longest of the batch.
    """

    def __init__(self, model: str, features: Sequence[Any], to_maximum: bool, work: Path):
        self._model = AutoModelForQuestionAnswering.from_pretrained(model)
        self._rows = [
            {
                "input_ids": f.input_ids.tolist(),
                "attention_mask": [1] * len(f.input_ids),
                "token_type_ids": f.token_type_ids.tolist(),
                "start_positions": int(f.labels[0]),
                "end_positions": int(f.labels[1]),
            }
            for f in features
        ]
        padding = {"padding": "max_length", "max_length": LENGTH} if to_maximum else {}
        self._collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(model), **padding)
        self._work = work

    def seconds(self, first: int, count: int) -> list[float]:
        """Of `count` updates on shuffled batches."""
        arguments = TrainingArguments(
            output_dir=str(self._work),
            per_device_train_batch_size=BATCH,
            max_steps=count,
            learning_rate=1e-4,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
            seed=first,
        )
        clock = _Clock()
        trainer = Trainer(
            model=self._model,
            args=arguments,
            train_dataset=self._rows,
            data_collator=self._collator,
            callbacks=[clock],
        )
        trainer.train()
        return clock.moments


@torch.no_grad()
def plain_answers(model, tokenizer, examples: Sequence[Any]) -> dict[str, str]:
    """The loop of the usual recipe: padded windows in batches, pairs in Python."""
    model.eval()
    encoded = tokenizer(
        [example.question for example in examples],
        [example.context for example in examples],
        truncation="only_second",
        max_length=LENGTH,
        stride=OVERLAP,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    owners, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    starts, ends = [], []
    for first in range(0, len(owners), BATCH):
        part = {name: values[first : first + BATCH] for name, values in encoded.items()}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**part)
        starts.append(output.start_logits.float())
        ends.append(output.end_logits.float())
    starts, ends = torch.cat(starts).numpy(), torch.cat(ends).numpy()
    best: dict[int, tuple[float, str]] = {}
    for window, owner in enumerate(owners.tolist()):
        in_context = np.array([s == 1 for s in encoded.sequence_ids(window)])
        for start in np.argsort(-starts[window])[:N_BEST]:
            for end in np.argsort(-ends[window])[:N_BEST]:
                inside = in_context[start] and in_context[end]
                if not inside or not start <= end < start + MAX_ANSWER:
                    continue
                score = starts[window, start] + ends[window, end]
                if owner not in best or score > best[owner][0]:
                    left, right = offsets[window, start, 0], offsets[window, end, 1]
                    best[owner] = (score, examples[owner].context[int(left) : int(right)])
    return {example.id: best.get(i, (0, ""))[1] for i, example in enumerate(examples)}


def train_rows(arguments, work: Path) -> list[dict[str, Any]]:
    """Seconds of an update of each variant, taking turns."""
    task = QATask("squad", QAOptions(length=LENGTH, overlap=OVERLAP))
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    examples = task.read(arguments.train, Rejects("skip"))[: arguments.questions]
    task.learn(examples, tokenizer)
    features = task.features(examples, tokenizer)
    variants = {
        "ours": OwnTraining(arguments.model, task, features, [e.id for e in examples]),
        "Trainer, padded to 256": TrainerTraining(arguments.model, features, True, work),
        "Trainer, padded to the batch": TrainerTraining(arguments.model, features, False, work),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(arguments.turns + 1):
        for name, variant in variants.items():
            found = variant.seconds(turn * arguments.steps, arguments.steps)
            # The first turn warms up; so do the first two updates of a new Trainer.
            seconds[name] += found[2:] if turn else []
    tokens = np.mean([len(feature.input_ids) for feature in features])
    shapes = f"questions={len(examples)} batch={BATCH} length={LENGTH} mean_tokens={tokens:.0f}"
    return [
        _row("fine-tuning step", name, shapes, median(values), "s", len(values))
        for name, values in seconds.items()
    ]


def predict_rows(arguments) -> list[dict[str, Any]]:
    """Questions a second of each variant, taking turns."""
    task = QATask("squad", QAOptions(length=LENGTH, overlap=OVERLAP, max_answer=MAX_ANSWER))
    examples = task.read(arguments.dev, Rejects("skip"))[: arguments.questions]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    with open_start(arguments.model) as start:
        model, _ = start_model(start, task.head, [], 0)
    model.save_pretrained(arguments.work / "model")
    plain = AutoModelForQuestionAnswering.from_pretrained(arguments.work / "model")
    own = Predictor(model, tokenizer, task, CPU, "bf16")
    variants: dict[str, Callable[[], Any]] = {
        "ours": lambda: own(examples),
        "plain loop over padded windows": lambda: plain_answers(plain, tokenizer, examples),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(arguments.turns + 1):
        for name, answer in variants.items():
            began = time.perf_counter()
            answer()
            if turn:
                rates[name].append(len(examples) / (time.perf_counter() - began))
    shapes = f"questions={len(examples)} length={LENGTH} overlap={OVERLAP}"
    rows = [
        _row("prediction", name, shapes, median(values), "questions/s", len(values))
        for name, values in rates.items()
    ]
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    return [*rows, _row("prediction", "ours / plain", shapes, median(ratios), "", len(ratios))]


def _row(
    what: str, variant: str, shapes: str, value: float, unit: str, samples: int
) -> dict[str, str]:
    own = {"op": what, "variant": variant, "shapes": shapes, "dtype": "bf16"}
    own |= {"samples": samples, "threads": torch.get_num_threads(), "value": value, "unit": unit}
    row = environment.describe("cpu") | own
    return {name: records.as_text(row.get(name)) for name in COLUMNS}


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, append to the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory of a BERT")
    parser.add_argument("--train", required=True, help="SQuAD 1.1 JSON")
    parser.add_argument("--dev", required=True, help="SQuAD 1.1 JSON")
    parser.add_argument("--parts", default="train,predict")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--steps", type=int, default=8, help="updates of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="directory for what is made")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finetuning.csv"))
    arguments = parser.parse_args(words)
    rows = []
    if "train" in arguments.parts.split(","):
        rows += train_rows(arguments, arguments.work)
    if "predict" in arguments.parts.split(","):
        rows += predict_rows(arguments)
    for row in rows:
        print(f"{row['op']:20s}{row['variant']:34s}{float(row['value']):8.3f} {row['unit']}")
    records.append(arguments.out, rows, COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
