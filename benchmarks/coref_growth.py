"""`python -m benchmarks.coref_growth [--lengths 500 2000 5000]`: how time and memory of the
coreference model grow with the document.

Every document and mode has a process of its own, whose peak of resident memory is reported: all of
it, and without what it held before its first document (libraries, weights). Training is a whole
step: loss, gradients and AdamW with its moments, in fp32. The weights are random and the text is
made up, of sentences as long as those of news; neither changes the work. Rows are printed
and appended to the CSV file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.installed import ROOT, prefer_installed

prefer_installed()

from benchmarks import environment, records  # noqa: E402

COLUMNS = (*records.COLUMNS, "peak_mb", "growth_mb")
MODES = ("predict", "train")
_SENTENCE = 25  # pieces; OntoNotes has 20 to 25 a sentence
_SEGMENT = 512
_VOCABULARY = 28_996


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 2000, 5000])
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--ffnn", type=int, default=1000)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recompute", action="store_true", help="encoder layers, in training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coref_growth.csv"))
    parser.add_argument("--one", choices=MODES, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def peak_mb() -> float:
    """Most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def document(length: int):
    """Inputs of a document of `length` pieces, with gold clusters of ten mentions each."""
    import torch

    generator = torch.Generator().manual_seed(length)
    borders = torch.tensor([*range(0, length, _SEGMENT), length])
    sentences = torch.arange(length) // _SENTENCE
    sentences[borders[:-1]] = sentences[borders[1:] - 1] = -1
    starts = torch.arange(1, length - 3, 15)
    return {
        "input_ids": torch.randint(5, _VOCABULARY, (length,), generator=generator),
        "cu_seqlens": borders,
        "sentence_map": sentences,
        "speakers": torch.arange(length) // 200 % 3 + 1,
        "gold_starts": starts,
        "gold_ends": starts + starts % 3,
        "gold_clusters": starts % (starts.numel() // 10 + 1),
    }


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and memory of one document in this process."""
    import torch
    from transformers import BertConfig

    from spanbert_ext.tasks.coref.model.coreference import SpanBertForCoreference

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=_VOCABULARY,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden // 64),
        intermediate_size=4 * options.hidden,
        coref={"ffnn_size": options.ffnn},
    )
    model = SpanBertForCoreference(config)
    model.train(options.one == "train")
    model.bert.encoder.gradient_checkpointing = options.recompute
    before = peak_mb()
    inputs = document(options.lengths[0])
    begin = time.perf_counter()
    if options.one == "predict":
        with torch.inference_mode():
            model.clusters(model(**inputs))
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        model(**inputs).loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_mb": peak_mb(), "growth_mb": peak_mb() - before}


def row(options: argparse.Namespace, length: int, mode: str) -> dict[str, str]:
    """The row of one process."""
    sizes = {"T": length, "H": options.hidden, "layers": options.layers, "F": options.ffnn}
    words = ["--one", mode, "--lengths", str(length), "--threads", str(options.threads)]
    for name in ("hidden", "layers", "ffnn"):
        words += [f"--{name}", str(getattr(options, name))]
    words += ["--recompute"] if options.recompute else []
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.coref_growth", *words],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout.splitlines()[-1])
    cells = {
        "op": "coref",
        "variant": mode,
        "shapes": " ".join(f"{name}={size}" for name, size in sizes.items()),
        "size": length,
        "size_unit": "pieces",
        "dtype": "fp32",
        "cache": "cold",
        "median_us": found["seconds"] * 1e6,
        "samples": 1,
        "threads": options.threads,
        "note": "encoder layers recomputed" if options.recompute else "",
        "peak_mb": found["peak_mb"],
        "growth_mb": found["growth_mb"],
    }
    cells = environment.describe("cpu") | cells
    return {name: records.as_text(value) for name, value in cells.items()}


def main(words: Sequence[str] | None = None) -> None:
    """Write a row for every length and mode as soon as it is measured."""
    options = arguments(words)
    if options.one:
        print(json.dumps(measure(options)))
        return
    for mode in options.modes:
        for length in options.lengths:
            found = row(options, length, mode)
            print(
                f"{mode} {length} pieces, {options.layers} layers of {options.hidden}: "
                f"{float(found['median_us']) / 1e6:.2f} s, {float(found['peak_mb']):,.0f} MB",
                flush=True,
            )
            records.append(options.out, [found], COLUMNS)


if __name__ == "__main__":
    main()
