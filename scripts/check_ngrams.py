"""Computes the losses of n-gram models once more, from the text, and compares them with what tinygpt says.

    tinygpt baseline RUN --json > baselines.json
    python scripts/check_ngrams.py baselines.json TEXTFILE

RUN is a run on TEXTFILE with the character tokenizer. The JSON gives the sizes of the splits, `k` and the discounts; counts and
losses are computed here, from the definitions. Exits with 1 if a loss is off by more than 1e-4 of its size.
Needs nothing but Python.
"""

import json
import sys
from collections import Counter, defaultdict
from math import log
from pathlib import Path

TOLERANCE = 1e-4


def ngrams(text: str, n: int) -> Counter:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def followers(counts: dict) -> dict:
    """Of each context, its tokens with their counts."""
    of = defaultdict(dict)
    for ngram, count in counts.items():
        of[ngram[:-1]][ngram[-1]] = count
    return of


def add_k(text: str, order: int, vocab_size: int, k: float):
    of = [followers(ngrams(text, n)) for n in range(1, order + 1)]
    totals = [{context: sum(tokens.values()) for context, tokens in level.items()} for level in of]

    def prob(context: str, token: str) -> float:
        n = len(context)
        return (of[n].get(context, {}).get(token, 0) + k) / (totals[n].get(context, 0) + k * vocab_size)

    return prob


def kneser_ney(text: str, order: int, vocab_size: int, discounts: list):
    levels = []
    for n in range(1, order + 1):
        if n == order:
            counts = ngrams(text, n)
        else:
            # The tokens that precede each n-gram; the start of the text counts as one more.
            counts = Counter(ngram[1:] for ngram in ngrams(text, n + 1))
            counts[text[:n]] += 1
        discount = [0.0, *discounts[n - 1]]
        levels.append({
            context: (tokens, sum(tokens.values()), sum(discount[min(c, 3)] for c in tokens.values()), discount)
            for context, tokens in followers(counts).items()
        })

    def prob(context: str, token: str) -> float:
        p = 1 / vocab_size
        for n in range(len(context) + 1):
            found = levels[n].get(context[len(context) - n :])
            if found is not None:
                tokens, total, taken, discount = found
                count = tokens.get(token, 0)
                p = (count - discount[min(count, 3)] + taken * p) / total
        return p

    return prob


def loss(prob, order: int, text: str) -> float:
    """The mean over all tokens but the first, each from the order - 1 before it, or as many as there are."""
    total = sum(log(prob(text[max(0, i - order + 1) : i], text[i])) for i in range(1, len(text)))
    return -total / (len(text) - 1)


def main(baselines: Path, text_file: Path) -> int:
    told = json.loads(baselines.read_text())
    text = text_file.read_bytes().decode("utf-8")
    vocab_size = told["vocab_size"]
    train, val = text[: told["train_tokens"]], text[-1 - told["tokens"] :]
    worst = 0.0
    for model in told["models"]:
        smoothing, order = model.get("smoothing"), model.get("order")
        if model["name"] == "uniform":
            ours = log(vocab_size)
        elif smoothing is None:
            continue  # The GPT, and the floor.
        elif smoothing["method"] == "add-k":
            ours = loss(add_k(train, order, vocab_size, smoothing["k"]), order, val)
        else:
            ours = loss(kneser_ney(train, order, vocab_size, smoothing["discounts"]), order, val)
        off = abs(ours - model["loss"]) / ours
        worst = max(worst, off)
        print(f"{model['name']:20} {model['loss']:.6f}  here {ours:.6f}  off by {off:.1e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
