"""The field's scorers, written anew from their descriptions: each reads files as the original does.

Slow and plain on purpose; sums run in the order of the originals, so that figures can be compared
to the last digit.
"""

import collections
import itertools
import json
import re
import string

# Coreference: the reference scorer of CoNLL-2012, v8.01.


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
    return {name: _recall_precision_f1(*values) for name, values in sums.items()}


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
    best = _best_map(similar)
    found["ceafe"] = (best, counts[0], best, counts[1])
    found["lea"] = (*_lea(key, last_response), *_lea(response, last_key))
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


# Questions: evaluate-v1.1.py (that of MRQA adds up alike) and evaluate-v2.0.py.


def _normalised(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _token_f1(gold, answer, empty_is_equal):
    gold, answer = _normalised(gold).split(), _normalised(answer).split()
    if empty_is_equal and (not gold or not answer):
        return int(gold == answer)
    same = sum((collections.Counter(gold) & collections.Counter(answer)).values())
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(answer), 1.0 * same / len(gold)
    return (2 * precision * recall) / (precision + recall)


def squad1(golds, predictions):
    """`exact` and `f1`.

    Args:
        golds: id -> texts.
        predictions: the file.
    """
    predictions = json.loads(predictions.read_text("utf-8"))
    exact = f1 = total = 0
    for id, texts in golds.items():
        total += 1
        answer = predictions[id]
        exact += max(_normalised(answer) == _normalised(gold) for gold in texts)
        f1 += max(_token_f1(gold, answer, False) for gold in texts)
    return {"exact": 100.0 * exact / total, "f1": 100.0 * f1 / total}


def squad2(golds, predictions, na_probs=None, na_threshold=1.0):
    """What the scorer prints.

    Args:
        golds: id -> texts, none where there is no answer.
        predictions, na_probs: the files.
    """
    predictions = json.loads(predictions.read_text("utf-8"))
    searched = na_probs is not None
    na_probs = json.loads(na_probs.read_text("utf-8")) if searched else dict.fromkeys(golds, 0.0)
    has_answer = {id: bool(texts) for id, texts in golds.items()}
    raw = {"exact": {}, "f1": {}}
    for id, texts in golds.items():
        texts = [text for text in texts if _normalised(text)] or [""]
        answer = predictions[id]
        raw["exact"][id] = max(int(_normalised(g) == _normalised(answer)) for g in texts)
        raw["f1"][id] = max(_token_f1(gold, answer, True) for gold in texts)
    found = {}
    groups = {"": list(golds), "HasAns_": [], "NoAns_": []}
    for id in golds:
        groups["HasAns_" if has_answer[id] else "NoAns_"].append(id)
    for prefix, ids in groups.items():
        if not ids:
            continue
        for name, scores in raw.items():
            kept = {
                id: float(not has_answer[id]) if na_probs[id] > na_threshold else scores[id]
                for id in scores
            }
            found[prefix + name] = 100.0 * sum(kept[id] for id in ids) / len(ids)
        found[f"{prefix}total"] = len(ids)
    for name, scores in raw.items() if searched else ():
        current = best = sum(not answerable for answerable in has_answer.values())
        for id in sorted(na_probs, key=lambda id: na_probs[id]):
            current += scores[id] if has_answer[id] else (-1 if predictions[id] else 0)
            best = max(best, current)
        found[f"best_{name}"] = 100.0 * best / len(scores)
    return found


# Entities: conlleval.


def conlleval(path):
    """(precision, recall, F1) in percent, and by type."""
    counts = collections.defaultdict(lambda: [0, 0, 0])  # right, found, gold
    columns = None
    last = [("O", ""), ("O", "")]
    open_and_right = False
    for line in path.read_text("utf-8").split("\n"):
        cells = line.split(" ") if line.strip() else []
        assert columns in (None, len(cells)) or not cells, "unexpected number of features"
        columns = len(cells) or columns
        if not cells or cells[0] == "-X-":
            cells = ["-X-", "O", "O"]
        tags = [tuple([*tag.split("-", 1), ""][:2]) for tag in cells[-2:]]
        ends = [_ends(*pair) for pair in zip(last, tags, strict=True)]
        starts = [_starts(*pair) for pair in zip(last, tags, strict=True)]
        if open_and_right:
            if ends == [True, True] and last[0][1] == last[1][1]:
                open_and_right = False
                counts[last[0][1]][0] += 1
            elif ends[0] != ends[1] or tags[0][1] != tags[1][1]:
                open_and_right = False
        if starts == [True, True] and tags[0][1] == tags[1][1]:
            open_and_right = True
        counts[tags[0][1]][2] += starts[0]
        counts[tags[1][1]][1] += starts[1]
        last = tags
    counts.pop("", None)
    totals = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0, 0]
    return _percentages(*totals), {name: _percentages(*own) for name, own in counts.items()}


def _percentages(right, found, gold):
    precision = 100 * right / found if found > 0 else 0
    recall = 100 * right / gold if gold > 0 else 0
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both > 0 else 0


def _ends(before, now):
    if before[0] == "O":
        return False
    return now[0] in ("B", "O") or before[1] != now[1]


def _starts(before, now):
    if now[0] == "O":
        return False
    return now[0] == "B" or before[0] == "O" or before[1] != now[1]


# Relations: TACRED's score.py.


def tacred(gold, predictions, none="no_relation"):
    """(precision, recall, F1) in [0, 1].

    Args:
        gold, predictions: files with a label a line.
    """
    key, guesses = (
        [line.rstrip("\n") for line in path.read_text("utf-8").splitlines(keepends=True)]
        for path in (gold, predictions)
    )
    assert len(key) == len(guesses)
    right, found, there = collections.Counter(), collections.Counter(), collections.Counter()
    for one, other in zip(key, guesses, strict=True):
        found[other] += other != none
        there[one] += one != none
        right[other] += one == other != none
    precision, recall, f1 = 1.0, 0.0, 0.0
    if found.total() > 0:
        precision = float(right.total()) / float(found.total())
    if there.total() > 0:
        recall = float(right.total()) / float(there.total())
    if precision + recall > 0.0:
        f1 = 2.0 * precision * recall / (precision + recall)
    return precision, recall, f1
