#!/usr/bin/env python3
"""Holds what `tinygpt score`, `eval` and `compare` say of two runs against transformers and plain Python.

    python3 scripts/check_transformers_scores.py RUN OTHER TEXT.txt [PROGRAM]   # PROGRAM: target/release/tinygpt

RUN and OTHER are run folders of one tokenizer that open in transformers; `tinygpt info` says which do. Prints a line for each
figure with the largest relative difference, of log-probabilities and entropies below 1 the absolute one. Exits with 1 where one is
above 1e-4, or a rank or one of the most probable tokens is another (but for tokens that are equally probable to 1e-5).

Needs: pip install torch transformers tokenizers. Stays offline.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4
TIE = 1e-5


class Model:
    """The log-probabilities of transformers."""

    def __init__(self, run):
        self.model = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32).eval()
        self.context = self.model.config.max_position_embeddings
        self.tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))

    def rows(self, ids, context, stride):
        """For each token but the first, the log-probabilities of all tokens (V), in f64: by the definition of `--stride`."""
        rows, start = [], 0
        while len(rows) < len(ids) - 1:
            window = ids[start : start + context]
            with torch.no_grad():
                logits = self.model(torch.tensor([window])).logits[0].double()
            predicted = torch.log_softmax(logits, -1)[: len(ids) - 1 - start]
            rows.extend(predicted[len(rows) - start :])
            start += stride
        return torch.stack(rows)

    def start_token(self):
        if (end_of_text := self.tokenizer.token_to_id("<|endoftext|>")) is not None:
            return end_of_text
        try:
            newline = self.tokenizer.encode("\n", add_special_tokens=False).ids
        except Exception:  # a tokenizer of characters without a line break
            newline = []
        if len(newline) == 1:
            return newline[0]
        return 0


class Check:
    def __init__(self, program):
        self.program, self.failed = str(program), False

    def tinygpt(self, *args):
        command = [self.program, *map(str, args), "--device", "cpu", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"check_transformers_scores: {' '.join(command)}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def report(self, what, difference):
        bad = not difference <= TOLERANCE  # not a number is bad
        self.failed |= bad
        print(f"{'FAILED' if bad else 'ok':6} {what:52} {difference:.2e}", flush=True)

    def score(self, run, model, text, path, stride):
        ours = self.tinygpt("score", run, "--file", path, "--stride", stride)
        ids = model.tokenizer.encode(text, add_special_tokens=False).ids
        rows = model.rows([model.start_token(), *ids], model.context, stride)
        assert [token["id"] for token in ours["tokens"]] == ids, "other tokens"
        logprob, entropy, other = 0.0, 0.0, 0
        for token, row in zip(ours["tokens"], rows):
            own = row[token["id"]].item()
            logprob = max(logprob, abs(token["logprob"] - own) / max(1.0, -own))
            expected = -(row.exp() * row).sum().item()
            entropy = max(entropy, abs(token["entropy"] - expected) / max(1.0, expected))
            # Where others are as probable but for rounding, any rank among them will do.
            least, most = ((row > own + TIE).sum().item() + 1, (row > own - TIE).sum().item())
            other += not least <= token["rank"] <= max(most, least)
            top = row.sort(descending=True).values[:5].tolist()
            other += any(abs(t["logprob"] - p) > TOLERANCE for t, p in zip(token["top"], top))
            other += any(abs(t["logprob"] - row[t["id"]].item()) > TOLERANCE for t in token["top"])
        name = f"score --stride {stride}, {len(ids)} tokens"
        self.report(f"{name}: each logprob", logprob)
        self.report(f"{name}: each entropy", entropy)
        self.report(f"{name}: ranks and top five that differ", float(other))
        total = sum(row[id].item() for row, id in zip(rows, ids))
        for key, expected in {
            "logprob": total, "perplexity": math.exp(-total / len(ids)),
            "bits_per_byte": -total / math.log(2) / len(text.encode()),
        }.items():
            self.report(f"{name}: {key}", abs(ours[key] - expected) / abs(expected))

    def eval(self, run, model, text, path, stride):
        ours = self.tinygpt("eval", run, "--data", path, "--stride", stride)["loss"]
        ids = model.tokenizer.encode(text, add_special_tokens=False).ids
        rows = model.rows(ids, model.context, stride)
        loss = -torch.stack([row[id] for row, id in zip(rows, ids[1:])]).mean().item()
        self.report(f"eval --stride {stride}: loss {loss:.6f}", abs(ours - loss) / loss)

    def compare(self, runs, models, text, path):
        ours = self.tinygpt("compare", *runs, "--data", path)
        ids = models[0].tokenizer.encode(text, add_special_tokens=False).ids
        context = min(model.context for model in models)
        p, q = (model.rows(ids, context, context) for model in models)
        mean = torch.logaddexp(p, q) - math.log(2)
        kl = lambda p, q: (p.exp() * (p - q)).sum(-1).mean().item()
        for key, expected in {
            "entropy_a": -(p.exp() * p).sum(-1).mean().item(), "entropy_b": -(q.exp() * q).sum(-1).mean().item(),
            "cross_entropy_ab": -(p.exp() * q).sum(-1).mean().item(), "kl_ab": kl(p, q), "kl_ba": kl(q, p),
            "jensen_shannon": 0.5 * (kl(p, mean) + kl(q, mean)),
            "top_agreement": (p.argmax(-1) == q.argmax(-1)).double().mean().item(),
        }.items():
            self.report(f"compare: {key} {expected:.6f}", abs(ours[key] - expected) / abs(expected))


def main():
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: check_transformers_scores.py RUN OTHER TEXT.txt [PROGRAM]")
    runs, path = [Path(run).resolve() for run in sys.argv[1:3]], Path(sys.argv[3])
    program = sys.argv[4] if len(sys.argv) == 5 else Path(__file__).resolve().parent.parent / "target/release/tinygpt"
    torch.set_num_threads(1)
    text, models, check = path.read_text(), [Model(run) for run in runs], Check(program)
    context = models[0].context
    for stride in sorted({1, context // 3 or 1, context}):
        check.score(runs[0], models[0], text, path, stride)
        check.eval(runs[0], models[0], text, path, stride)
    check.compare(runs, models, text, path)
    sys.exit(check.failed)


main()
