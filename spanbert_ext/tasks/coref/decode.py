"""From scored antecedents to clusters. Free of torch."""

from __future__ import annotations

import numpy as np

Span = tuple[int, int]


def link_clusters(
    starts: np.ndarray,
    ends: np.ndarray,
    antecedents: np.ndarray,
    scores: np.ndarray,
    mention_scores: np.ndarray | None = None,
) -> list[list[Span]]:
    """Clusters of spans, each linked to its best antecedent, if that scores above 0.

    Args:
        starts, ends: [K] integer, first and last piece of the spans in their order.
        antecedents: [K, c] integer, earlier spans.
        scores: [K, 1 + c], that of no antecedent (0) first; minus infinity where there is none.
        mention_scores: [K]; if they are given, a span in no cluster is one of its own where its
            score is above 0. None: there are no clusters of one mention.

    Returns:
        Clusters of (first piece, last piece), inclusive; mentions in their order, clusters in that
        of their first mentions.
    """
    cluster_of: dict[int, int] = {}
    clusters: list[list[int]] = []
    best = scores.argmax(axis=1) if len(starts) else ()
    for span, choice in enumerate(best):
        if choice == 0:
            continue
        antecedent = int(antecedents[span, choice - 1])
        if antecedent not in cluster_of:
            cluster_of[antecedent] = len(clusters)
            clusters.append([antecedent])
        cluster_of[span] = cluster_of[antecedent]
        clusters[cluster_of[span]].append(span)
    if mention_scores is not None:
        alone = (s for s in range(len(starts)) if s not in cluster_of and mention_scores[s] > 0)
        clusters += [[span] for span in alone]
    clusters.sort(key=lambda cluster: cluster[0])
    return [[(int(starts[span]), int(ends[span])) for span in cluster] for cluster in clusters]
