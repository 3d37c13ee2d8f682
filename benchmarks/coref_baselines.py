"""`python -m benchmarks.coref_baselines FILE...`: what coreference scores without a model.

Mentions of the gold standard, or found by rule, are clustered by their string or by their head
word; the scores are those of `spanbert evaluate coref`, with and without clusters of one mention.
Files are in CoNLL columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.installed import prefer_installed

prefer_installed()

from benchmarks import string_coref  # noqa: E402
from spanbert_ext.tasks.coref import conll  # noqa: E402
from spanbert_ext.tasks.coref.options import CorefOptions  # noqa: E402
from spanbert_ext.tasks.coref.task import CorefPrediction, CorefTask  # noqa: E402
from spanbert_ext.tasks.rejects import Rejects  # noqa: E402

MENTIONS = {
    "gold mentions": string_coref.gold_mentions,
    "mentions by rule": string_coref.rule_mentions,
}
LINKS = {"same string": string_coref.same_string, "same head": string_coref.same_head}


def main(words: Sequence[str] | None = None) -> int:
    """Print a line for each file and baseline."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args(words)
    task = CorefTask("coref", CorefOptions())
    for file in arguments.files:
        documents = conll.read(file, Rejects("error"))
        for mentions, find in MENTIONS.items():
            for link, cluster in LINKS.items():
                found = [CorefPrediction(cluster(d, find(d)), {}) for d in documents]
                scores = task.score(documents, found)
                print(
                    f"{file}  {mentions}, {link}: f1 {scores['f1']:.2f}, with singletons "
                    f"{scores['with_singletons.f1']:.2f}"
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
