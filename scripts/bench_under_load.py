#!/usr/bin/env python3
"""What training, decoding and drawing keep of their speed while other processes want the same cores.

    cargo build --release
    python3 scripts/bench_under_load.py
    python3 scripts/bench_under_load.py decode-small sampling --rounds 8 --busy 4

Work is timed alone and beside busy processes (as many as there are cores), in turn, a second or two each; the table has the
medians. With as many busy processes as cores, fair is half: a slowdown of 2. Fewer is luck, more is waiting for a thread that has
not been scheduled. Measure on a machine that does nothing else, whose load is printed first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

# The arguments of the program, and where the figure is in what it prints: a value that is less where it is faster.
WORKS = {
    "train-small": ("bench train small --iters 60", lambda printed: printed["median_ms"], "ms an update"),
    "decode-small": ("bench decode small", lambda printed: printed["median_ms"], "ms a token"),
    "decode-baby": ("bench decode baby", lambda printed: printed["median_ms"], "ms a token"),
    **{
        f"sampling-{rule}": (
            f"bench sampling --quick --rows 16 --vocab 50257 --rule {rule}",
            lambda printed: next(cell["us_per_row"] for cell in printed["cells"] if cell["contender"] == "host"),
            "us a row",
        )
        for rule in ("greedy", "top-k", "temperature", "top-p")
    },
}


def busy(n):
    """Processes that only compute, until they are ended."""
    return [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]


def figure(program, threads, arguments, read):
    command = [program, "--threads", str(threads), *arguments.split(), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench_under_load: {' '.join(command)}: {done.stderr.strip()}")
    return read(json.loads(done.stdout.splitlines()[-1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; `sampling` is all of its rules")
    parser.add_argument("--tinygpt", default="target/release/tinygpt", type=Path, help="the program")
    parser.add_argument("--rounds", default=5, type=int, help="how often each is timed in either way")
    parser.add_argument("--threads", default=os.cpu_count(), type=int, help="of the program")
    parser.add_argument("--busy", default=os.cpu_count(), type=int, help="processes beside it")
    args = parser.parse_args()
    named = {name: [work for work in WORKS if work == name or work.startswith(f"{name}-")] for name in args.works}
    unknown = [name for name, works in named.items() if not works]
    if unknown:
        parser.error(f"no such work: {', '.join(unknown)}; there are {', '.join(WORKS)}")
    chosen = [work for work in WORKS if not named or any(work in works for works in named.values())]
    if not args.tinygpt.is_file():
        parser.error(f"there is no {args.tinygpt}: build it, or name another by --tinygpt")
    program = str(args.tinygpt.resolve())
    print(f"{os.cpu_count()} cores, {args.threads} threads, {args.busy} busy processes, load before {os.getloadavg()[0]:.2f}")
    print(f"{'work':<22}{'alone':>10}{'beside':>10}  {'slowdown':>8}")
    for work in chosen:
        arguments, read, unit = WORKS[work]
        alone, beside = [], []
        for _ in range(args.rounds):
            alone.append(figure(program, args.threads, arguments, read))
            others = busy(args.busy)
            try:
                beside.append(figure(program, args.threads, arguments, read))
            finally:
                for other in others:
                    other.kill()
                for other in others:
                    other.wait()
        before, after = statistics.median(alone), statistics.median(beside)
        print(f"{work:<22}{before:>10.3f}{after:>10.3f}  {after / before:>8.2f}  {unit}", flush=True)


if __name__ == "__main__":
    main()
