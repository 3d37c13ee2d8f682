"""Modules under the names that they had in 0.1.0, for code that imports them; with a warning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MOVED = {
    "archives": "weights.archives",
    "arguments": "cli.arguments",
    "attention": "model.attention",
    "bench": "cli.bench",
    "chunked_attention": "model.chunked_attention",
    "configuration": "model.config",
    "console": "cli.console",
    "conversion": "weights.conversion",
    "cpu_attention": "model.cpu_attention",
    "cross_entropy": "ops.cross_entropy",
    "curves": "training.plots",
    "data.vocabulary": "text.vocabulary",
    "doctor": "cli.doctor",
    "dropout_reference": "ops.reference.dropout",
    "encoder": "model.encoder",
    "encoder_products": "model.products",
    "fairseq": "weights.fairseq",
    "fill_config": "filling.config",
    "fill_search": "filling.search",
    "foreign": "model.hf_encoder",
    "gaps": "filling.gaps",
    "heads": "model.heads",
    "load_report": "weights.load_report",
    "mask_reference": "ops.reference.span_mask",
    "mask_settings": "masking.settings",
    "masked_batch": "masking.batch",
    "modeling": "model.pretraining",
    "presets": "training.presets",
    "progress": "training.progress",
    "reference": "ops.reference.sbo",
    "sbo": "model.sbo",
    "starting_points": "weights.sources",
    "step_timer": "training.step_timer",
    "tasks.coref.documents": "tasks.coref.data",
    "tasks.coref.linking": "tasks.coref.decode",
    "tasks.coref.networks": "tasks.coref.model.networks",
    "tasks.coref.pruning": "tasks.coref.model.pruning",
    "tasks.coref.reference": "tasks.coref.model.reference",
    "tasks.coref.released": "tasks.coref.model.released",
    "tasks.coref.resolver": "tasks.coref.pipeline",
    "tasks.coref.scoring": "tasks.coref.model.scoring",
    "tasks.coref.segments": "tasks.coref.features",
    "tasks.coref.spans": "tasks.coref.model.spans",
    "tasks.foreign_heads": "tasks.hf_heads",
    "tasks.glue": "tasks.classification",
    "tasks.glue.config": "tasks.classification.config",
    "tasks.glue.layouts": "tasks.classification.layouts",
    "tasks.glue.metrics": "tasks.classification.metrics",
    "tasks.glue.reading": "tasks.classification.data",
    "tasks.glue.task": "tasks.classification.task",
    "tasks.qa.answering": "tasks.qa.pipeline",
    "tasks.qa.decoding": "tasks.qa.decode",
    "tasks.qa.reading": "tasks.qa.data",
    "tasks.qa.windows": "tasks.qa.features",
    "tasks.relation.classifier": "tasks.relation.pipeline",
    "tasks.relation.inputs": "tasks.relation.features",
    "tasks.relation.reading": "tasks.relation.data",
    "tasks.tagging.decoding": "tasks.tagging.decode",
    "tasks.tagging.reading": "tasks.tagging.data",
    "tasks.tagging.tagger": "tasks.tagging.pipeline",
    "tasks.verbs": "cli.task_verbs",
    "tensorflow_files": "weights.tensorflow",
    "tied_embedding": "ops.tied_embedding",
    "training.demo": "cli.demo",
    "training.demo_text": "cli.demo_text",
    "training.settings": "settings.build",
}


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an old name, and gives the module that is there now."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        package, _, name = fullname.partition(".")
        if package != __package__ or name not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = f"{__package__}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__  # the import of an alias replaces it
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """In front of the other finders, which would load a module of `tasks.glue` a second time."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Alias())
