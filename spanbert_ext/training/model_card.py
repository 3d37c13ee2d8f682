"""The README.md of an exported model: what it was made of, how, how well, and what it may be used
for. Everything comes from the checkpoint it was exported from; what is not known is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from spanbert_ext.files import write_text
from spanbert_ext.settings.build import as_flat_dict
from spanbert_ext.training.config import FREE_ON_RESUME, PretrainConfig
from spanbert_ext.training.run_log import format_seconds

NAME = "README.md"
# The hub's names of the licences that open weights carry.
_LICENCES = (
    "apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "gpl-3.0", "cc0-1.0", "cc-by-4.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-3.0", "cc-by-sa-3.0",
)  # fmt: skip
# Told elsewhere in the card, or names of places on the machine that trained.
_NOT_LISTED = FREE_ON_RESUME | {"init", "precision"}
_MASKED = {
    "span": "spans of whole words",
    "piece": "word pieces",
    "word": "whole words",
    "entity": "named entities",
    "phrase": "noun phrases",
}
_LIMITS = (
    "It is meant for fine-tuning on tasks over text of the kind it was trained on, above all those "
    "that select or classify spans (questions, coreference, relations, entities); the masked "
    "language model head fills blanks and says nothing about truth. Nobody has examined it for "
    "bias, for private text in its corpus or for other domains and languages: measure that on your "
    "own data before you rely on it."
)


def write_card(source: Path, target: Path) -> Path:
    """Write the card into an exported directory.

    Args:
        source: the checkpoint (or other model directory) it was exported from.
        target: the export; its config.json says what can be loaded.

    Raises:
        StorageError: it cannot be written.
    """
    card = render(
        target.resolve().name,
        exported=_read(target / "config.json"),
        model=_read(source / "config.json"),
        state=_read(source / "state.json"),
        tokenizer=_read(source / "tokenizer.json"),
    )
    write_text(target / NAME, card)
    return target / NAME


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def render(
    title: str,
    *,
    exported: Mapping[str, Any],
    model: Mapping[str, Any],
    state: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
) -> str:
    """The text of a card, Markdown with YAML in front.

    Args:
        title: its heading.
        exported: config.json of the exported model.
        model, state, tokenizer: config.json, state.json and tokenizer.json of the checkpoint;
            empty where there is none.
    """
    licence = model.get("weights_licence")
    parts = [
        _front_matter(exported, licence),
        f"# {plain(title)}\n",
        _introduction(exported, state),
        _loading(exported),
    ]
    if state:
        parts += [_data(state, tokenizer), _training(state), _losses(state), _settings(state)]
    else:
        parts.append("## Training\n\nNothing is recorded about how these weights were trained.\n")
    parts += [f"## Intended use and limits\n\n{_LIMITS}\n", _licence(licence, state)]
    return "\n".join(parts)


def plain(value: Any) -> str:
    """Text of a name or setting that cannot act as Markdown, HTML or the end of a table's cell."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = re.sub(r"([\\`*\[\]|~$]|\b_|_\b)", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fills_masks(exported: Mapping[str, Any]) -> bool:
    return any(str(name).endswith("ForMaskedLM") for name in exported.get("architectures") or ())


def _front_matter(exported: Mapping[str, Any], licence: str | None) -> str:
    fields: dict[str, Any] = {"library_name": "transformers"}
    if licence:
        words = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
        known = [name for name in _LICENCES if words.startswith(name)]
        fields["license"] = max(known, key=len) if known else "other"
        if not known:
            fields["license_name"] = words[:60]
    fields["pipeline_tag"] = "fill-mask" if _fills_masks(exported) else "feature-extraction"
    fields["tags"] = ["spanbert", "span-masking", "pre-training"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _introduction(exported: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    sizes = [
        f"{exported[name]} {unit}"
        for name, unit in (
            ("num_hidden_layers", "layers"),
            ("hidden_size", "wide"),
            ("num_attention_heads", "heads"),
        )
        if isinstance(exported.get(name), int)
    ]
    head = ", with its masked language model head" if _fills_masks(exported) else ""
    settings = state.get("settings", {})
    masked = _MASKED.get(settings.get("masking.scheme", "span"), "tokens")
    sbo = settings.get("loss.sbo_weight", 1.0)
    boundary = (
        " and to predict each of their tokens from the two tokens around the span (the span "
        "boundary objective, whose head is not part of this directory)"
        if sbo
        else ""
    )
    kind = plain(exported.get("model_type", "bert")).upper()
    return (
        f"A {kind} encoder ({', '.join(sizes)}){head}, pre-trained with spanbert_ext in the manner "
        f"of [SpanBERT](https://arxiv.org/abs/1907.10529): to rebuild masked {masked}{boundary}.\n"
    )


def _loading(exported: Mapping[str, Any]) -> str:
    auto = "AutoModelForMaskedLM" if _fills_masks(exported) else "AutoModel"
    return (
        "## Loading\n\n```python\n"
        f"from transformers import {auto}, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")\n'
        f'model = {auto}.from_pretrained("path/to/this/directory")\n```\n'
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *([plain(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _data(state: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    facts = state.get("corpus_facts", {})
    rows = [
        (label, form(facts[name]))
        for name, label, form in (
            ("documents", "documents", "{:,}".format),
            ("tokens", "word pieces", "{:,}".format),
            ("validation_fraction", "held out", "{:.3g} of the documents".format),
            ("vocab_size", "vocabulary", "{:,} pieces".format),
        )
        if name in facts
    ]
    if isinstance(tokenizer.get("model"), dict):
        normalizer = json.dumps(tokenizer.get("normalizer"))
        case = ", lower-cased" if re.search(r'"lowercase": true|"Lowercase"', normalizer) else ""
        rows.append(("tokenizer", f"{tokenizer['model'].get('type', 'unknown')}{case}"))
    rows.append(("fingerprint of corpus and tokenizer", state.get("corpus", "unknown")))
    return f"## Data\n\n{_table(('corpus', ''), rows)}"


def _training(state: Mapping[str, Any]) -> str:
    settings = state.get("settings", {})
    init = settings.get("init")
    versions = ", ".join(f"{name} {value}" for name, value in state.get("versions", {}).items())
    step, steps = state.get("step", 0), settings.get("steps", 0)
    rows = [
        # A path on the training machine is nobody's business; its last part is the model's name.
        ("started from", "random weights" if init is None else _name_of(init)),
        ("steps", f"{step:,}" if step == steps else f"{step:,} of {steps:,}"),
        ("tokens seen", f"{state.get('tokens', 0):,}"),
        ("precision", settings.get("precision", "unknown")),
        ("hardware", state.get("hardware") or "unknown"),
        ("time", format_seconds(state.get("seconds", 0.0))),
        ("versions", versions),
    ]
    if state.get("skipped"):
        rows.append(("updates skipped, gradient not finite", f"{state['skipped']:,}"))
    return f"## Training\n\n{_table(('run', ''), rows)}"


def _name_of(init: str) -> str:
    is_path = init.startswith((".", "/", "~")) or "\\" in init or init.count("/") > 1
    return Path(init).name if is_path or Path(init).exists() else init


def _losses(state: Mapping[str, Any]) -> str:
    before, after = state.get("starting_losses", {}), state.get("latest_losses", {})
    if not after:
        return "### Held-out losses\n\nThe corpus had no held-out part: no loss was measured.\n"
    rows = [
        (name.removesuffix("_loss").upper(), _loss(before.get(name)), _loss(value))
        for name, value in after.items()
    ]
    return (
        "### Held-out losses\n\nNats a target; in brackets the number of equally likely choices "
        f"it is worth.\n\n{_table(('objective', 'before', 'after'), rows)}"
    )


def _loss(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "unknown"
    return f"{value:.3f} ({math.exp(min(value, 100.0)):,.1f})"


def _settings(state: Mapping[str, Any]) -> str:
    published, used = as_flat_dict(PretrainConfig()), state.get("settings", {})
    rows = [
        (name, _shown(published[name]), _shown(used[name]))
        for name in published
        if name in used and name not in _NOT_LISTED and used[name] != published[name]
    ]
    title = "### Settings that differ from the published SpanBERT\n\n"
    return title + (_table(("setting", "published", "here"), rows) if rows else "None.\n")


def _shown(value: Any) -> str:
    return "from the preset" if value is None else str(value)


def _licence(licence: str | None, state: Mapping[str, Any]) -> str:
    if licence:
        text = f"The weights it started from carry a licence that goes with it: {plain(licence)}."
    elif state and state.get("settings", {}).get("init") is None:
        text = (
            "The weights started at random; none is inherited. What the texts of the corpus allow "
            "is for whoever publishes the model to say."
        )
    else:
        text = "The weights it started from name none; look it up where they came from."
    return f"## Licence\n\n{text}\n"
