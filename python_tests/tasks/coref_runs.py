"""Coreference that a tiny BERT can learn: equal names are the same person, all else is nobody."""

import random

from toy_tasks import NAMES, PLAIN

from spanbert_ext.settings import build
from spanbert_ext.tasks import registry
from spanbert_ext.tasks.config import FinetuneConfig
from spanbert_ext.tasks.coref import conll
from spanbert_ext.tasks.coref.data import from_words


def story(number, sentences=6, seed=0):
    """A document of short sentences with a name in most of them."""
    draw = random.Random(f"{seed} {number}")
    people = draw.sample(NAMES, 3)
    words, clusters = [], {}
    place = 0
    for _ in range(sentences):
        sentence = draw.choices(PLAIN, k=draw.randint(2, 5))
        if draw.random() < 0.9:
            name, at = draw.choice(people), draw.randint(0, len(sentence))
            sentence.insert(at, name)
            clusters.setdefault(name, []).append((place + at, place + at))
        sentence.append(".")
        words.append(sentence)
        place += len(sentence)
    return from_words(f"story_{number}", words, clusters.values())


def story_file(path, count, seed=0, sentences=6):
    conll.write(path, [story(number, sentences, seed) for number in range(count)])
    return path


def coref_words(model, folder, output="run", **changes):
    """The words of a `spanbert finetune coref` of 160 small steps, with files made in `folder`."""
    values = {
        "model": model,
        "train": story_file(folder / "train.conll", 20),
        "dev": story_file(folder / "dev.conll", 6, seed=1),
        "output": output,
        "epochs": 8,
        "precision": "fp32",
        "device": "cpu",
        "log_every": 1,
        "dropout": 0,
        "optimizer.peak_lr": 5e-4,
        "optimizer.task_lr": 1e-2,
        "evals_per_epoch": 1,
        "checkpoint.every": 4,
        "coref.max_segment_len": 16,
        "coref.max_span_width": 4,
        "coref.ffnn_size": 24,
        "coref.feature_size": 4,
        "coref.dropout": 0.1,
        "coref.singletons": "true",
    }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["finetune", "coref", *(f"--{name}={value}" for name, value in values.items())]


def config_of(words):
    """The settings that the words of `finetune` mean."""
    values = dict(word[2:].split("=", 1) for word in words[2:])
    return build.build(registry.settings_class(FinetuneConfig, words[1]), values)
