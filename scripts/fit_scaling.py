#!/usr/bin/env python3
"""Fits the law of the loss to the runs of scripts/scaling.sh, and writes its constants to docs/scaling/laws.json.

    scripts/fit_scaling.py                       # needs numpy; reads docs/scaling/*.jsonl
    scripts/fit_scaling.py --write               # and replaces docs/scaling/laws.json
    scripts/fit_scaling.py --runs                # prints every run beside its law

N is the number of parameters but those of the embeddings, D the number of tokens that were trained on, L the validation loss
in nats a token. Two forms are fitted:

    sum      L = E + A / N^alpha + B / D^beta           Hoffmann et al., 2022, "Training compute-optimal large language models"
    power    L = E + (A / N^alpha + B / D)^power        Kaplan et al., 2020, "Scaling laws for neural language models", and E

A term of our own is added for a text of U tokens that is read more than once, which a model then begins to learn by heart:
C (N / U)^gamma (D / U - 1)^delta, of the parameters for each token and the repetitions. (The effective tokens of Muennighoff
et al., 2023, "Scaling data-constrained language models", level off, but never make a loss rise, as it does here.)

As in Hoffmann's third approach the Huber loss of log L is minimised, from a grid of starting points; here by Levenberg and
Marquardt's method, and with 1e-2 in place of 1e-3: with one seed a run, most residuals are larger than that. How well a form
predicts is measured by a fit that does not know the runs with each size's largest number of tokens; the form that predicts
better is written.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "scaling"
DELTA = 1e-2
# Units in which the constants are found.
N0, D0 = 2e5, 1e6
FORMS = ["sum", "power"]


class Runs:
    """The runs of a corpus, a column each."""

    def __init__(self, rows):
        self.names = [row["run"] for row in rows]
        self.n = np.array([row["parameters_without_embeddings"] for row in rows], float)
        self.d = np.array([row["tokens"] for row in rows], float)
        self.u = np.array([row["unique_tokens"] for row in rows], float)
        self.loss = np.array([row["loss"] for row in rows])
        self.floor = rows[0]["floor"]
        self.repeats = (self.d > 1.5 * self.u).any()
        self.rows = rows

    def where(self, mask):
        return Runs([row for row, keep in zip(self.rows, mask) if keep])

    def largest(self):
        """Of each size, the run with the most tokens of the whole text."""
        whole = np.array([name.count("-") == 1 for name in self.names])
        return np.array([w and d == self.d[whole & (self.n == n)].max() for n, d, w in zip(self.n, self.d, whole)])


def log_loss(theta, runs, form):
    """log L; theta = (log A, alpha, log B, beta or log power, log E, log C, gamma, delta), without the last three where nothing
    is repeated. A and B are those of N / N0 and D / D0."""
    a, alpha, b, last, e = theta[:5]
    beta, power = (last, 1.0) if form == "sum" else (1.0, np.exp(last))
    gap = power * np.logaddexp(a - alpha * np.log(runs.n / N0), b - beta * np.log(runs.d / D0))
    terms = [np.full_like(gap, e), gap]
    if len(theta) > 5:
        c, gamma, delta = theta[5:]
        again = np.maximum(runs.d / runs.u - 1, 1e-9)
        terms.append(c + gamma * np.log(runs.n / runs.u) + delta * np.log(again))
    return np.logaddexp.reduce(terms, axis=0)


def huber(x):
    return np.where(np.abs(x) <= DELTA, x * x / 2, DELTA * (np.abs(x) - DELTA / 2)).sum()


def minimise(theta, runs, form):
    """Levenberg and Marquardt's method; a residual beyond DELTA has the weight of Huber's loss."""

    def residuals(theta):
        return log_loss(theta, runs, form) - np.log(runs.loss)

    x, damping = residuals(theta), 1e-2
    for _ in range(400):
        steps = 1e-6 * np.eye(len(theta))
        jacobian = np.array([(residuals(theta + step) - residuals(theta - step)) / 2e-6 for step in steps]).T
        weight = np.minimum(1, DELTA / np.maximum(np.abs(x), 1e-12))
        hessian, slope = jacobian.T @ (weight[:, None] * jacobian), jacobian.T @ (weight * x)
        for _ in range(12):
            move = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-10), -slope)
            if np.abs(move).max() < 3:
                new = residuals(theta + move)
                if huber(new) < huber(x):
                    break
            damping *= 4
        else:
            break
        theta, x, damping = theta + move, new, damping / 3
    return huber(x), theta


def fit(runs, form):
    best = (np.inf, None)
    lasts = (0.4, 0.7) if form == "sum" else (0.3, 1.3)
    for a, b, last, e in itertools.product((-3.0, -1.0), (-3.0, -1.0), lasts, (0.7, 0.95)):
        theta = [a, 0.4, b, last, np.log(e * runs.loss.min()), *([-5.0, 1.0, 1.0] if runs.repeats else [])]
        best = min(best, minimise(np.array(theta), runs, form), key=lambda found: found[0])
    return best[1]


def constants(theta, runs, form):
    """The law as `ScalingLaw` of the crate `trainer` has it."""
    a, alpha, b, last, e = theta[:5]
    beta, power = (last, 1.0) if form == "sum" else (1.0, np.exp(last))
    c, gamma, delta = theta[5:] if runs.repeats else (-np.inf, 1.0, 1.0)
    law = {"e": np.exp(e), "a": np.exp(a) * N0**alpha, "alpha": alpha, "b": np.exp(b) * D0**beta, "beta": beta}
    law |= {"power": power, "c": np.exp(c), "gamma": gamma, "delta": delta}
    law = {key: float(f"{value:.5g}") for key, value in law.items()}
    ranges = {"parameters": [runs.n.min(), runs.n.max()], "tokens": [runs.d.min(), runs.d.max()]}
    return law | {"measured": ranges | {"epochs": max(1.0, (runs.d / runs.u).max().round())}}


def errors(theta, runs, form):
    """Predicted over measured loss, less one."""
    return np.exp(log_loss(theta, runs, form)) / runs.loss - 1


def summary(errors):
    return f"{100 * np.sqrt((errors**2).mean()):.2f}% (root mean square), {100 * np.abs(errors).max():.2f}% at most"


def report(form, runs, show_runs):
    """Prints how well a form fits and predicts; returns the law, and the root mean square of what it mispredicts."""
    theta = fit(runs, form)
    law = constants(theta, runs, form)
    print(f"  {form}: " + ", ".join(f"{key} {value:g}" for key, value in law.items() if key != "measured"))
    print(f"    error of {len(runs.names)} runs: {summary(errors(theta, runs, form))}")
    largest = runs.largest()
    known, held_out = runs.where(~largest), runs.where(largest)
    blind = errors(fit(known, form), held_out, form)
    print(f"    error of {largest.sum()} runs held out: {summary(blind)}")
    for name, loss, error in zip(held_out.names, held_out.loss, blind):
        print(f"      {name:<20} measured {loss:.4f}  predicted {loss * (1 + error):.4f}  {100 * error:+.2f}%")
    if show_runs:
        for name, loss, error in zip(runs.names, runs.loss, errors(theta, runs, form)):
            print(f"      {name:<20} measured {loss:.4f}  law {loss * (1 + error):.4f}  {100 * error:+.2f}%")
    return law, np.sqrt((blind**2).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace docs/scaling/laws.json")
    parser.add_argument("--runs", action="store_true", help="print every run beside its law")
    args = parser.parse_args()
    laws = {}
    for file in sorted(FOLDER.glob("*.jsonl")):
        runs = Runs([json.loads(line) for line in file.read_text().splitlines()])
        print(f"{file.stem}{'' if runs.floor is None else f', whose entropy is {runs.floor:.4f} nats a token'}")
        found = [report(form, runs, args.runs) for form in FORMS]
        laws[file.stem] = min(found, key=lambda found: found[1])[0]
    if args.write:
        (FOLDER / "laws.json").write_text(json.dumps(laws, indent=2) + "\n")


main()
