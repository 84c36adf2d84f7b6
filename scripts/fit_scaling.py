#!/usr/bin/env python3
"""Fits L(N, D) = E + A / N^alpha + B / D^beta to the runs of scripts/scaling.sh (Hoffmann et al., 2022, "Training
compute-optimal large language models", their third approach), and writes the constants to docs/scaling/laws.json.

    scripts/fit_scaling.py                       # needs numpy; reads docs/scaling/*.jsonl
    scripts/fit_scaling.py --write               # and replaces docs/scaling/laws.json

N is the number of parameters but those of the embeddings, D the number of tokens that were trained on, L the validation loss
in nats a token. As in the paper the Huber loss (delta = 1e-3) of log L is minimised, from a grid of starting points; here by
Levenberg and Marquardt's method. Where a text of U tokens is read more than once, a model begins to learn it by heart, and
its validation loss rises: C (N / U)^gamma (D / U - 1)^delta is added, whose form is our own. (The effective tokens of Muennighoff
et al., 2023, "Scaling data-constrained language models", level off, but never make a loss rise.)

How well a law predicts is measured by one that does not know the runs with each size's largest number of tokens.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "scaling"
DELTA = 1e-3

class Runs:
    """The runs of a corpus, a column each."""

    def __init__(self, rows):
        self.names = [row["run"] for row in rows]
        self.n = np.array([row["parameters_without_embeddings"] for row in rows], float)
        self.d = np.array([row["tokens"] for row in rows], float)
        self.u = np.array([row["unique_tokens"] for row in rows], float)
        self.loss = np.array([row["loss"] for row in rows])
        self.floor = rows[0]["floor"]
        self.rows = rows

    def where(self, mask):
        return Runs([row for row, keep in zip(self.rows, mask) if keep])

    def largest(self):
        """Of each size, the run with the most tokens; those on a part of the text are left out."""
        whole = np.array([name.count("-") == 1 for name in self.names])
        return np.array([w and d == self.d[whole & (self.n == n)].max() for n, d, w in zip(self.n, self.d, whole)])


def log_loss(theta, runs, fixed_e=None):
    """log L; theta = (log A, alpha, log B, beta, log E, log C, gamma, delta), without log E where it is given, and without
    the last three where nothing is repeated."""
    a, alpha, b, beta = theta[:4]
    rest = list(theta[4:])
    e = np.log(fixed_e) if fixed_e else rest.pop(0)
    terms = [a - alpha * np.log(runs.n), b - beta * np.log(runs.d), np.full_like(runs.d, e)]
    if rest:
        c, gamma, delta = rest
        again = np.maximum(runs.d / runs.u - 1, 1e-9)
        terms.append(c + gamma * np.log(runs.n / runs.u) + delta * np.log(again))
    return np.logaddexp.reduce(terms, axis=0)


def huber(x):
    return np.where(np.abs(x) <= DELTA, x * x / 2, DELTA * (np.abs(x) - DELTA / 2)).sum()


def minimise(theta, runs, fixed_e):
    """Levenberg and Marquardt's method; a residual beyond DELTA has the weight of Huber's loss."""
    residuals = lambda theta: log_loss(theta, runs, fixed_e) - np.log(runs.loss)
    x, damping = residuals(theta), 1e-2
    for _ in range(300):
        jacobian = np.empty((len(x), len(theta)))
        for i in range(len(theta)):
            step = np.zeros_like(theta)
            step[i] = 1e-6
            jacobian[:, i] = (residuals(theta + step) - residuals(theta - step)) / 2e-6
        weight = np.minimum(1, DELTA / np.maximum(np.abs(x), 1e-12))
        hessian, slope = jacobian.T @ (weight[:, None] * jacobian), jacobian.T @ (weight * x)
        for _ in range(12):
            move = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-12), -slope)
            if np.abs(move).max() < 3:
                new = residuals(theta + move)
                if huber(new) < huber(x):
                    break
            damping *= 4
        else:
            break
        gain = huber(x) - huber(new)
        theta, x, damping = theta + move, new, damping / 3
        if gain < 1e-12 * huber(x):
            break
    return huber(x), theta


def fit(runs, fixed_e=None):
    repeats = (runs.d > 1.5 * runs.u).any()
    starts = itertools.product((2.0, 5.0), (0.3, 0.6), (4.0, 8.0), (0.4, 0.7))
    best = (np.inf, None)
    for start in starts:
        for e in [None] if fixed_e else [-0.7, 0.0, 0.4]:
            theta = np.array([*start, *([] if e is None else [e]), *([-4.0, 1.0, 1.0] if repeats else [])])
            try:
                best = min(best, minimise(theta, runs, fixed_e), key=lambda found: found[0])
            except np.linalg.LinAlgError:
                continue
    return best[1]


def constants(theta, fixed_e):
    a, alpha, b, beta = theta[:4]
    rest = list(theta[4:])
    e = fixed_e or np.exp(rest.pop(0))
    c, gamma, delta = rest or (-np.inf, 1.0, 1.0)
    law = {"e": e, "a": np.exp(a), "alpha": alpha, "b": np.exp(b), "beta": beta, "c": np.exp(c), "gamma": gamma, "delta": delta}
    return {key: float(f"{value:.5g}") for key, value in law.items()}


def errors(theta, runs, fixed_e):
    """Predicted over measured loss, less one."""
    return np.exp(log_loss(theta, runs, fixed_e)) / runs.loss - 1


def report(corpus, runs, fixed_e=None):
    theta = fit(runs, fixed_e)
    law = constants(theta, fixed_e)
    text = " ".join(f"{key} {value:g}" for key, value in law.items())
    print(f"{corpus}: {len(runs.names)} runs{', E fixed at the floor' if fixed_e else ''}\n  {text}")
    rest = errors(theta, runs, fixed_e)
    print(f"  of these runs: error {100 * np.sqrt((rest**2).mean()):.2f}% (root mean square), {100 * np.abs(rest).max():.2f}% at most")
    held_out = runs.largest()
    known, unknown = runs.where(~held_out), runs.where(held_out)
    blind = errors(fit(known, fixed_e), unknown, fixed_e)
    print(f"  of runs held out: error {100 * np.sqrt((blind**2).mean()):.2f}%, {100 * np.abs(blind).max():.2f}% at most")
    for name, loss, error in zip(unknown.names, unknown.loss, blind):
        print(f"    {name:<14} measured {loss:.4f}  predicted {loss * (1 + error):.4f}  {100 * error:+.2f}%")
    return law, rest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="replace docs/scaling/laws.json")
    parser.add_argument("--runs", action="store_true", help="print every run beside its law")
    args = parser.parse_args()
    laws = {}
    for file in sorted(FOLDER.glob("*.jsonl")):
        runs = Runs([json.loads(line) for line in file.read_text().splitlines()])
        law, rest = report(file.stem, runs)
        if runs.floor:
            print(f"  E {law['e']:.4f}; the entropy is {runs.floor:.4f} nats a token")
            law, rest = report(file.stem, runs, runs.floor)
        if args.runs:
            for name, n, loss, error in zip(runs.names, runs.n, runs.loss, rest):
                print(f"    {name:<22} {n:>9.0f} measured {loss:.4f}  law {100 * error:+.2f}%")
        law |= {"parameters": [int(runs.n.min()), int(runs.n.max())], "tokens": [int(runs.d.min()), int(runs.d.max())]}
        law["epochs"] = float(f"{(runs.d / runs.u).max():.3g}")
        laws[file.stem] = law
    if args.write:
        (FOLDER / "laws.json").write_text(json.dumps(laws, indent=2) + "\n")


main()
