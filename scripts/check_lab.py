#!/usr/bin/env python3
"""Recomputes what `tinygpt lab --json` says of words and loops from the completions that it prints.

    tinygpt lab RUN --json > lab.json
    python3 scripts/check_lab.py lab.json

Prints, for each strategy, distinct-1, distinct-2 and the share of repeated 4-grams as plain Python counts them, and how far off
the program's are. The exit code is 1 where any differs by more than rounding. Needs nothing but the standard library.
"""

import json
import math
import re
import sys

# What Unicode calls white space. `str.split()` would also split at U+001C to U+001F.
WHITE_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
TOLERANCE = 1e-12


def words(text):
    return [word for word in WHITE_SPACE.split(text) if word]


def ngrams(text, n):
    all_words = words(text)
    return [tuple(all_words[i : i + n]) for i in range(len(all_words) - n + 1)]


def distinct(texts, n):
    of_all = [ngram for text in texts for ngram in ngrams(text, n)]
    return len(set(of_all)) / len(of_all) if of_all else None


def repeated(texts, n):
    count = sum(len(ngrams(text, n)) for text in texts)
    new = sum(len(set(ngrams(text, n))) for text in texts)
    return (count - new) / count if count else None


def loop(tokens):
    n = len(tokens)
    for period in range(1, n // 2 + 1):
        for start in range(n - 2 * period + 1):
            if all(tokens[i] == tokens[i + period] for i in range(start, n - period)):
                if 4 * (n - start) >= n:
                    return {"period": period, "start": start}
                break
    return None


def perplexity(completions):
    tokens = sum(len(c["tokens"]) for c in completions)
    return math.exp(sum(len(c["tokens"]) * math.log(c["perplexity"]) for c in completions) / tokens)


def difference(ours, theirs):
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.inf
    return abs(ours - theirs) / max(1.0, abs(ours))


def main():
    with open(sys.argv[1], encoding="utf-8") if len(sys.argv) > 1 else sys.stdin as file:
        report = json.load(file)
    worst = 0.0
    print(f"{'strategy':20} {'distinct_1':>12} {'distinct_2':>12} {'repeated_4':>12} {'off by':>10}")
    for strategy in report["strategies"]:
        completions = strategy["completions"]
        assert len(completions) == report["samples"] * len(report["prompts"]), strategy["name"]
        texts = [completion["text"] for completion in completions]
        counted = {
            "distinct_1": distinct(texts, 1),
            "distinct_2": distinct(texts, 2),
            "repeated_4_grams": repeated(texts, 4),
            "perplexity": perplexity(completions),
            "looping": sum(loop(c["tokens"]) is not None for c in completions) / len(completions),
        }
        off = max(difference(value, strategy[key]) for key, value in counted.items())
        if any(loop(c["tokens"]) != c["loop"] for c in completions):
            off = math.inf
        worst = max(worst, off)
        shown = ["-" if counted[key] is None else f"{counted[key]:.6f}" for key in list(counted)[:3]]
        print(f"{strategy['name']:20} {shown[0]:>12} {shown[1]:>12} {shown[2]:>12} {off:>10.1e}")
    print(f"largest difference {worst:.1e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
