"""Makes `release-0.1.0.tar.xz`: run once with that release, `python make.py OUTPUT`.

Everything is done by the release's own command, in an empty directory, with paths below it.
"""

import gzip
import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path

from spanbert_ext import cli
from spanbert_ext.filling import SpanFiller
from spanbert_ext.training import checkpoint

NAMES = ("Anna", "Boris", "Clara", "David")
PLACES = ("Rome", "Paris")
CPU = ["--device=cpu", "--precision=fp32"]


def command(*words, code=0):
    """Run `spanbert WORDS`."""
    found = cli.main([str(word) for word in words])
    assert found == code, (words, found)


def stopped(*words):
    """Run a training that is asked to stop behind its first checkpoint."""
    save = checkpoint.save

    def save_and_stop(*given):
        path = save(*given)
        os.kill(os.getpid(), signal.SIGTERM)
        return path

    checkpoint.save = save_and_stop
    command(*words, code=75)
    checkpoint.save = save


def sentences(count):
    """(words, the person, the place)"""
    for number in range(count):
        who, where = NAMES[number % 4], PLACES[number // 2 % 2]
        verb = ("went to", "lives in", "saw")[number % 3]
        yield [who, *verb.split(), where, "."], who, where


def write(path, text):
    Path(path).write_text(text, "utf-8")


def corpus():
    blocks = [" ".join(words) + "\nThe old house was dark.\n" for words, _, _ in sentences(80)]
    write("text.txt", "\n".join(blocks))
    command("prepare", "text.txt", "--output=corpus", "--vocab_size=70", "--workers=1")


def pretraining():
    words = [
        *("pretrain", "--corpus=corpus", "--output=run", "--steps=8", "--seed=3", *CPU),
        *("--model.layers=1", "--model.hidden=8", "--model.heads=2", "--model.feed_forward=16"),
        *("--optimizer.warmup_steps=2", "--optimizer.peak_lr=1e-2", "--log_every=1"),
        *("--batch.rows=4", "--batch.max_length=32", "--checkpoint.every=4", "--checkpoint.keep=1"),
        *("--validation.every=4", "--masking.max_words=4"),
    ]
    stopped(*words)
    write("pretrain.json", json.dumps(words))


def questions(path, count):
    paragraphs = []
    for number, (words, who, where) in enumerate(sentences(count)):
        text = " ".join(words)
        answers = [] if number % 4 == 3 else [{"text": who, "answer_start": text.index(who)}]
        asked = f"Who saw {where} ?" if answers else "Was it dark ?"
        question = {"id": f"q{number}", "question": asked, "answers": answers}
        paragraphs.append({"context": text, "qas": [question | {"is_impossible": not answers}]})
    write(path, json.dumps({"data": [{"paragraphs": paragraphs}]}))


def mrqa(path, count):
    lines = [json.dumps({"header": {"dataset": "toy", "split": "train"}})]
    for number, (words, _, where) in enumerate(sentences(count)):
        text = " ".join(words)
        start = text.index(where)
        found = [{"text": where, "char_spans": [[start, start + len(where) - 1]]}]
        question = {"qid": f"q{number}", "question": "Where ?", "answers": [where]}
        lines.append(json.dumps({"context": text, "qas": [question | {"detected_answers": found}]}))
    Path(path).write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def relations(path, count):
    names = {"went": "no_relation", "lives": "per:city", "saw": "per:knows"}
    records = []
    for number, (words, _, _) in enumerate(sentences(count)):
        end = len(words) - 2
        places = {"subj_start": 0, "subj_end": 0, "obj_start": end, "obj_end": end}
        types = {"subj_type": "PERSON", "obj_type": "CITY"}
        fields = {"id": f"r{number}", "token": words, "relation": names[words[1]]}
        records.append(fields | places | types)
    write(path, json.dumps(records))


def entities(path, count):
    tags = dict.fromkeys(NAMES, "B-PER") | dict.fromkeys(PLACES, "B-LOC")
    blocks = (
        "".join(f"{word} {tags.get(word, 'O')}\n" for word in words)
        for words, _, _ in sentences(count)
    )
    write(path, "\n".join(blocks))


def stories(path, count):
    lines = []
    for number in range(count):
        found = [words for words, _, _ in sentences(number + 8)][number:]
        words = [word for sentence in found for word in sentence]
        clusters = [
            [[place, place] for place, word in enumerate(words) if word == name] for name in NAMES
        ]
        several = [cluster for cluster in clusters if len(cluster) > 1]
        lines.append(
            json.dumps({"doc_key": f"nw_{number}", "sentences": found, "clusters": several})
        )
    write(path, "\n".join(lines))


def pairs(path, count):
    rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    for number, (words, who, where) in enumerate(sentences(count)):
        same = number % 2
        other = f"{who} saw {where} ." if same else "The old house was dark."
        rows.append(f"{same}\t{number}\t{number}\t{' '.join(words)}\t{other}")
    write(path, "\n".join(rows) + "\n")


TASKS = {
    "squad2": (questions, "json", ["--qa.length=64", "--qa.max_question=16"]),
    "mrqa": (mrqa, "jsonl.gz", ["--qa.length=64", "--qa.max_question=16"]),
    "tacred": (relations, "json", ["--relation.length=64", "--relation.input=typed-marker"]),
    "ner": (
        entities,
        "conll",
        [
            "--tagging.length=32",
            "--tagging.scheme=bilou",
            "--tagging.join=false",
            "--tagging.overlap=4",
        ],
    ),
    "coref": (
        stories,
        "jsonl",
        [
            *("--coref.max_segment_len=64", "--coref.max_span_width=3", "--coref.ffnn_size=8"),
            *("--coref.feature_size=4", "--coref.singletons=true", "--optimizer.task_lr=1e-2"),
        ],
    ),
    "mrpc": (pairs, "tsv", ["--glue.length=64"]),
}


def records(task):
    """What `predict` reads."""
    found = list(sentences(6))
    if task in ("squad2", "mrqa"):
        asked = ("Who saw Rome ?", "Was it dark ?") if task == "squad2" else ("Where ?", "Where ?")
        return [
            {"question": asked[number % 2], "context": " ".join(words)}
            for number, (words, _, _) in enumerate(found)
        ]
    if task == "tacred":
        return [
            {"token": w, "subj_start": 0, "subj_end": 0, "obj_start": len(w) - 2}
            | {"obj_end": len(w) - 2, "subj_type": "PERSON", "obj_type": "CITY"}
            for w, _, _ in found
        ]
    if task == "ner":
        return [{"text": " ".join(w)} for w, _, _ in found]
    if task == "coref":
        return [{"sentences": [w for w, _, _ in found]}, {"text": "Anna saw Boris. Anna left."}]
    return [
        {"sentence1": " ".join(w), "sentence2": f"{who} saw {where} ."} for w, who, where in found
    ]


def task(name):
    make, suffix, options = TASKS[name]
    make(f"{name}.{suffix}", 24)
    words = [
        *("finetune", name, "--model=bert", f"--train={name}.{suffix}", f"--dev={name}.{suffix}"),
        *(f"--output={name}", "--epochs=24", "--evals_per_epoch=1", "--optimizer.peak_lr=2e-2"),
        *("--log_every=4", "--checkpoint.every=8", *CPU, *options),
        *(["--batch.examples=2"] if name == "coref" else ["--batch.examples=4"]),
    ]
    if name == "ner":
        stopped(*words)
        write("ner.words.json", json.dumps(words))
        shutil.copytree("ner", "ner-run")
        (Path("ner-run") / ".lock").unlink()
    command(*words)
    for folder in Path(name).glob("step-*"):
        shutil.rmtree(folder)
    (Path(name) / ".lock").unlink()
    write(f"{name}.in.jsonl", "".join(json.dumps(record) + "\n" for record in records(name)))
    model = [f"--model={name}", *CPU]
    command("predict", name, f"{name}.in.jsonl", f"{name}.out.jsonl", *model)
    command("evaluate", name, f"--data={name}.{suffix}", f"--metrics={name}.metrics.json", *model)


def fillings():
    filled = SpanFiller("run", device="cpu")("Anna [MASK] [MASK] Rome .", top_k=2)
    write("fill.json", json.dumps([[filling.text, filling.score] for filling in filled]))


def main(output):
    corpus()
    pretraining()
    fillings()
    command("export", "run", "bert")
    for name in TASKS:
        task(name)
    (Path("run") / ".lock").unlink()
    with tarfile.open(output, "w:xz", preset=9) as archive:
        for path in sorted(Path().iterdir()):
            archive.add(path, filter=nobody)


def nobody(member):
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
