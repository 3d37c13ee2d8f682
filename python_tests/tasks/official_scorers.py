"""The field's scorers, written anew from their descriptions: each reads files as the original does.

Slow and plain on purpose; sums run in the order of the originals, so that figures can be compared
to the last digit.
"""

import collections
import itertools
import re

# Coreference: the reference scorer of CoNLL-2012, v8.01.

METRICS = ("mentions", "muc", "bcub", "ceafe", "ceafm", "lea")


def conll2012_documents(path):
    """Name -> chains of (first, last) in the order in which the scorer numbers them."""
    documents, name = {}, None
    for line in path.read_text("utf-8").split("\n"):
        if begin := re.match(r"#\s*begin document (.*?)$", line):
            name = begin[1]
            assert name not in documents
            chains, number_of, opened, place = [], {}, collections.defaultdict(list), 0
            documents[name] = chains
        elif re.match(r"#\s*end document", line):
            assert not any(opened.values())
            name = None
        elif name is not None and line.strip():
            cell = line.split("\t")[-1]

            def chain(label, numbers=number_of, chains=chains):
                if label not in numbers:
                    numbers[label] = len(chains)
                    chains.append([])
                return chains[numbers[label]]

            for label in re.findall(r"\((\d+)\)", cell):
                chain(label).append((place, place))
            cell = re.sub(r"\(\d+\)", "", cell)
            for label in re.findall(r"\((\d+)", cell):
                chain(label)
                opened[label].append(place)
            cell = re.sub(r"\(\d+", "", cell)
            for label in re.findall(r"(\d+)\)", cell):
                chain(label).append((opened[label].pop(), place))
            place += 1
    return documents


def conll2012(documents):
    """Metric -> (recall, precision, F1) in [0, 1].

    Args:
        documents: pairs of key chains and response chains.
    """
    sums = collections.defaultdict(lambda: [0, 0, 0, 0])
    for key, response in documents:
        for name, values in _conll2012_document(key, response).items():
            sums[name] = [a + b for a, b in zip(sums[name], values, strict=True)]
    blanc = [_recall_precision_f1(*sums.pop(name)) for name in ("links", "others") if sums[name][1]]
    found = {name: _recall_precision_f1(*v) for name, v in sums.items() if name in METRICS}
    mean = tuple(sum(column) / len(blanc) for column in zip(*blanc, strict=True))
    return found | {"blanc": mean or (0, 0, 0)}


def _recall_precision_f1(recall_top, recall_bottom, precision_top, precision_bottom):
    recall = recall_top / recall_bottom if recall_bottom else 0
    precision = precision_top / precision_bottom if precision_bottom else 0
    both = recall + precision
    return recall, precision, 2 * precision * recall / both if both else 0


def _conll2012_document(key, response):
    in_key = {mention for chain in key for mention in chain}
    # A mention of the key is assigned once; the response's later ones go.
    assigned, cleaned = set(), []
    for chain in response:
        kept = []
        for mention in chain:
            if mention not in assigned:
                kept.append(mention)
            if mention in in_key:
                assigned.add(mention)
        cleaned.append(kept)
    response = cleaned
    last_key = {m: chain for chain in key for m in chain}
    last_response = {m: chain for chain in response for m in chain}
    found = {"mentions": (len(assigned), len(in_key), len(assigned), len(last_response))}

    links = 0
    for chain in response:
        for place, mention in enumerate(chain):
            later = chain[place + 1 :]
            own = last_key.get(mention)
            links += own is not None and any(last_key.get(other) is own for other in later)
    in_chains = [sum(len(c) - 1 for c in chains if c) for chains in (key, response)]
    found["muc"] = (links, in_chains[0], links, in_chains[1])

    recall = precision = 0
    for chain in response:
        for mention in chain:
            own = last_key.get(mention, [])
            common = sum(other in own for other in chain)
            precision += common / len(chain)
            recall += common / len(own) if own else 0
    sizes = [sum(map(len, chains)) for chains in (key, response)]
    found["bcub"] = (recall, sizes[0], precision, sizes[1])

    common = [[sum(m in other for m in chain) for other in response] for chain in key]
    similar = [
        [2 * n / (len(a) + len(b)) if n else 0 for n, b in zip(row, response, strict=True)]
        for row, a in zip(common, key, strict=True)
    ]
    counts = [sum(map(bool, chains)) for chains in (key, response)]
    for name, table, (of_key, of_response) in (
        ("ceafe", similar, counts),
        ("ceafm", common, sizes),
    ):
        best = _best_map(table)
        found[name] = (best, of_key, best, of_response)
    found["lea"] = (*_lea(key, last_response), *_lea(response, last_key))
    found |= _blanc(key, response)
    return found


def _best_map(table):
    if not table or not table[0]:
        return 0
    if len(table) > len(table[0]):
        table = list(zip(*table, strict=True))
    return max(
        sum(row[column] for row, column in zip(table, columns, strict=True))
        for columns in itertools.permutations(range(len(table[0])), len(table))
    )


def _lea(chains, chain_of):
    total = 0
    for chain in filter(None, chains):
        if len(chain) == 1:
            total += len(chain_of.get(chain[0], [])) == 1
            continue
        pairs = list(itertools.combinations(chain, 2))
        right = sum(
            a in chain_of and b in chain_of and chain_of[a] is chain_of[b] for a, b in pairs
        )
        total += len(chain) * (right / len(pairs))
    return total, sum(map(len, chains))


def _blanc(key, response):
    sides = []
    for chains in (key, response):
        inside = {tuple(sorted(p)) for c in chains for p in itertools.combinations(c, 2)}
        between = {
            tuple(sorted(p))
            for a, b in itertools.combinations(chains, 2)
            for p in itertools.product(a, b)
        }
        sides.append((inside, between))
    return {
        name: (len(a & b), len(a), len(a & b), len(b))
        for name, a, b in zip(("links", "others"), *sides, strict=True)
    }
