"""`python -m benchmarks.ablation --corpus DIR`: the paper's nine models at a small size, on the
same text for the same number of steps, and the held-out losses they reach.

Every model is its packaged configuration (`spanbert pretrain --config NAME`) with the settings of
`SMALL` and of the command line on top: `--steps 500`, `--preset mini`, `--batch.rows 64` and so on.
Losses can be compared between models that mask alike; a span is harder to guess than a piece.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.installed import ROOT, prefer_installed

prefer_installed()

from transformers.utils import logging  # noqa: E402

from benchmarks import environment, records  # noqa: E402
from spanbert_ext.cli.arguments import split_arguments  # noqa: E402
from spanbert_ext.errors import ConfigError, SpanBertError  # noqa: E402
from spanbert_ext.settings import build  # noqa: E402
from spanbert_ext.settings.files import config_file, read_yaml  # noqa: E402
from spanbert_ext.training.config import PretrainConfig  # noqa: E402

# From the least like SpanBERT to SpanBERT, then the five schemes of Table 6.
MODELS = (
    "our-bert",
    "bert-1seq",
    "spanbert-no-sbo",
    "spanbert",
    "scheme-piece",
    "scheme-word",
    "scheme-entity",
    "scheme-phrase",
    "scheme-span",
)
SMALL = {
    "preset": "tiny",
    "steps": 200,
    "log_every": 50,
    "optimizer.peak_lr": 1e-3,
    "optimizer.warmup_steps": 20,
    "batch.rows": 32,
    "batch.max_length": 128,
    "validation.every": 0,
    "validation.rows": 256,
    "checkpoint.every": 1_000_000,
    "checkpoint.keep": 1,
}
LOSSES = ("mlm_loss", "sbo_loss", "nsp_loss")
COLUMNS = (
    *records.COLUMNS,
    "seconds",
    *(f"{name}_{when}" for name in LOSSES for when in ("start", "end")),
)


def model_settings(model: str, given: Mapping[str, Any]) -> PretrainConfig:
    """The packaged configuration with `SMALL` and then `given` (dotted names) on top.

    Raises:
        ConfigError: lists every impossible setting.
    """
    groups = {option.name.rpartition(".")[0] for option in build.options(PretrainConfig)}
    chosen = read_yaml(config_file(model), groups) | SMALL | dict(given)
    return build.build(PretrainConfig, chosen)


def run(model: str, config: PretrainConfig) -> dict[str, str]:
    """Pre-train one model; its row, with a note in place of losses where it cannot be trained."""
    from spanbert_ext.training.models import choose_device, choose_precision
    from spanbert_ext.training.pretrain import pretrain

    device = choose_device(config.device)
    row: dict[str, Any] = environment.describe(device.type) | {
        "op": "pretraining",
        "variant": model,
        "shapes": f"preset={config.preset} rows={config.batch.rows} "
        f"length={config.batch.max_length} seed={config.seed}",
        "size": config.steps,
        "size_unit": "steps",
        "dtype": choose_precision(config.precision, device),
    }
    try:
        state = pretrain(config).state
    except SpanBertError as error:
        row["note"] = str(error)
    else:
        row["seconds"] = state.seconds
        for name in LOSSES:
            row[f"{name}_start"] = state.starting_losses.get(name)
            row[f"{name}_end"] = state.latest_losses.get(name)
    return {name: records.as_text(row.get(name)) for name in COLUMNS}


def table(rows: Sequence[dict[str, str]]) -> str:
    """Held-out losses before and after training, one line a model."""
    lines = [
        f"{'model':18s}" + "".join(f"{name.removesuffix('_loss').upper():>18s}" for name in LOSSES)
    ]
    for row in rows:
        cells = [
            f"{float(row[f'{name}_start']):.3f} -> {float(row[f'{name}_end']):.3f}"
            if row[f"{name}_end"]
            else "-"
            for name in LOSSES
        ]
        line = f"{row['variant']:18s}" + "".join(f"{cell:>18s}" for cell in cells)
        lines.append(f"{row['variant']:18s}  {row['note']}" if row["note"] else line)
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Run the models, print the table, append to the CSV; 1 if a model could not be trained."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__.partition("\n\n")[2],
        allow_abbrev=False,
        epilog="Everything else is a setting of `spanbert pretrain`.",
    )
    parser.add_argument("--corpus", required=True, help="directory written by `spanbert prepare`")
    parser.add_argument("--models", default=",".join(MODELS), help="names, separated by commas")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "ablation.csv"
    )
    parser.add_argument("--runs", type=Path, help="keep the runs in this directory")
    options, rest = parser.parse_known_args(words)
    logging.disable_progress_bar()
    known = {option.name: option for option in build.options(PretrainConfig)}
    given = split_arguments(rest, known)
    models = options.models.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs or Path(temporary)
        try:
            if given.positionals or given.files or given.faults:
                raise ConfigError(f"expected settings, `--name value`; got {' '.join(rest)}")
            configs = {
                model: model_settings(
                    model, given.values | {"corpus": options.corpus, "output": str(runs / model)}
                )
                for model in models
            }
        except ConfigError as error:
            parser.error(str(error))
        rows = []
        for model, config in configs.items():
            print(f"== {model}", flush=True)
            rows.append(run(model, config))
            records.append(options.results, rows[-1:], COLUMNS)
    print(table(rows))
    return 1 if any(row["note"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
