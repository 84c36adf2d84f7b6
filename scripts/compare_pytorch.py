#!/usr/bin/env python3
"""Runs tinygpt and PyTorch on the same work, in turn, and prints medians and ratios as one table.

    cargo build --release
    torch-env/bin/python scripts/compare_pytorch.py                 # see scripts/bench_pytorch.py for the environment
    torch-env/bin/python scripts/compare_pytorch.py train-small decode-gpt2 --rounds 5
    torch-env/bin/python scripts/compare_pytorch.py fit-small --data data/tinyshakespeare.txt --rounds 1

Every round starts each program once, one after the other, and never two at a time. A figure is the median over rounds
of the median that a program gives. Without names all but fit-small is run: about ten minutes a round, most of them
train-baby. On a machine that does anything else at the time the figures mean nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
PYTORCH_TRAINING = {"PyTorch": "", "PyTorch --compile": "--compile", "PyTorch --fused": "--fused"}


def train(work, theirs, bf16=False):
    """Work of `bench train` with all ways to run PyTorch."""
    ours, flag = ("--precision bf16", " --bf16") if bf16 else ("", "")
    pytorch = {name + flag: f"train {work} {theirs} {flags}{flag}" for name, flags in PYTORCH_TRAINING.items()}
    return {"tinygpt": f"bench train {work} {ours} --json"}, pytorch


def decode(work):
    return {"tinygpt": f"bench decode {work} --json"}, {"PyTorch": f"decode {work}"}


# What tinygpt and what bench_pytorch.py are given, by the names that the table shows.
WORKS = {
    "train-small": train("small --iters 100", ""),
    "train-baby": train("baby --iters 3", "--warmup 1"),
    "train-baby-bf16": train("baby --iters 3", "--warmup 1", bf16=True),
    "decode-small": decode("small"),
    "decode-baby": decode("baby"),
    "decode-gpt2": decode("gpt2"),
    "decode-gpt2-8-rows": decode("gpt2 --rows 8"),
    "fit-small": (
        {"tinygpt": "train --config shakespeare-small --data {data} --out {dir}/run --overwrite --json "
                    "--set train.eval_every=500 --set train.eval_batches=1"},
        {name: f"fit small --data {{data}} {flags}" for name, flags in PYTORCH_TRAINING.items()},
    ),
}


def last_line(command):
    """The JSON object that a program ends in, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return None, str(error)
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), None


def figures_of(result):
    """The same keys for every kind of work."""
    if "report" in result:  # of `tinygpt train`
        return {"seconds": result["seconds"], "val_loss": result["report"]["loss"]}
    kept = ("median_ms", "tokens_per_s", "share_of_peak", "share_of_bandwidth", "peak_memory_mib", "seconds", "val_loss")
    return {key: result[key] for key in kept if result.get(key) is not None}


def compare(name, args, directory):
    """The medians of all contenders, in rounds; those that do not run are told of and left out."""
    ours, theirs = WORKS[name]
    threads = ["--threads", str(args.threads)]
    commands = {label: [args.tinygpt, *threads, *line.split()] for label, line in ours.items()}
    bench = [args.python, str(SCRIPTS / "bench_pytorch.py"), *threads]
    commands |= {label: [*bench, *line.split()] for label, line in theirs.items()}
    results = {label: [] for label in commands}
    for round_number in range(args.rounds):
        for label in list(results):
            print(f"{name}, round {round_number + 1} of {args.rounds}: {label}", file=sys.stderr)
            command = [part.format(data=args.data, dir=directory) for part in commands[label]]
            result, problem = last_line(command)
            if problem:
                print(f"{name}: {label} is left out: {problem}", file=sys.stderr)
                del results[label]
            else:
                results[label].append(figures_of(result))
    return [{"work": name, "contender": label} | medians(rounds) for label, rounds in results.items()]


def medians(rounds):
    """Of each figure over the rounds that have it: a share of a limit that could not be measured is missing."""
    keys = dict.fromkeys(key for one in rounds for key in one)
    return {key: statistics.median(one[key] for one in rounds if key in one) for key in keys}


def with_ratios(cells):
    """How many times as fast as the fastest PyTorch each of them is."""
    def speed(cell):
        return cell["tokens_per_s"] if "tokens_per_s" in cell else 1 / cell["seconds"]

    best = max((speed(cell) for cell in cells if cell["contender"].startswith("PyTorch")), default=None)
    return [cell | ({"x_pytorch": speed(cell) / best} if best else {}) for cell in cells]


def table(cells):
    columns = {  # title: (key, format)
        "ms": ("median_ms", "{:.2f}"),
        "tokens/s": ("tokens_per_s", "{:.0f}"),
        "seconds": ("seconds", "{:.1f}"),
        "val loss": ("val_loss", "{:.4f}"),
        "x PyTorch": ("x_pytorch", "{:.2f}"),
        "of f32 peak": ("share_of_peak", "{:.1%}"),
        "of bandwidth": ("share_of_bandwidth", "{:.1%}"),
        "peak MiB": ("peak_memory_mib", "{:.0f}"),
    }
    columns = {title: column for title, column in columns.items() if any(column[0] in cell for cell in cells)}
    lines = [["work", "contender", *columns]]
    for cell in cells:
        values = [form.format(cell[key]) if key in cell else "-" for key, form in columns.values()]
        lines.append([cell["work"], cell["contender"], *values])
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [(">" if n > 1 else "<") + str(width) for n, width in enumerate(widths)]
    return "\n".join("  ".join(format(value, form) for value, form in zip(line, aligned)).rstrip() for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tinygpt", default=str(SCRIPTS.parent / "target/release/tinygpt"), help="the built program")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torch")
    parser.add_argument("--data", help="the text of fit-small")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    works = args.works or [name for name in WORKS if name != "fit-small"]
    if unknown := [name for name in works if name not in WORKS]:
        parser.error(f"there is no work {unknown[0]}; it is one of {', '.join(WORKS)}")
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if "fit-small" in works and not args.data:
        parser.error("fit-small needs --data FILE: `tinygpt data fetch tinyshakespeare`")
    if not Path(args.tinygpt).is_file():
        parser.error(f"there is no {args.tinygpt}; build it with `cargo build --release`")
    with tempfile.TemporaryDirectory() as directory:
        cells = [cell for name in works for cell in with_ratios(compare(name, args, directory))]
    print(json.dumps({"threads": args.threads, "rounds": args.rounds, "cells": cells}) if args.json else table(cells))


main()
