#!/usr/bin/env python3
"""The work of `tinygpt bench` and of a whole training run on PyTorch, to compare with; the last line is a JSON object.

    python3 -m venv torch-env && torch-env/bin/pip install torch numpy       # about 5 GB; --compile needs a C++ compiler
    torch-env/bin/python scripts/bench_pytorch.py train small --fused        # or baby, gpt2; --compile, --bf16, --batch B
    torch-env/bin/python scripts/bench_pytorch.py decode gpt2 --rows 8       # or small, baby; --tokens N
    torch-env/bin/python scripts/bench_pytorch.py fit small --data data/tinyshakespeare.txt

The model, initial weights and optimizer are those of tinygpt's recipes. Runs on the CPU with two threads (--threads), or on
a GPU with --device cuda, in front of the command.
Run nothing else at the same time. scripts/compare_pytorch.py sets it against tinygpt, in turn.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    batch: int = 1
    vocab_size: int = 65  # the characters of Shakespeare
    dropout: float = 0.0
    steps: int = 0  # updates of the whole recipe


SHAPES = {
    "small": Shape(n_layer=4, n_head=4, n_embd=128, block_size=64, batch=12, steps=2000),
    "baby": Shape(n_layer=6, n_head=6, n_embd=384, block_size=256, batch=64, dropout=0.2, steps=5000),
    "gpt2": Shape(n_layer=12, n_head=12, n_embd=768, block_size=1024, batch=16, vocab_size=50257),
}
LR, MIN_LR, WARMUP_STEPS = 1e-3, 1e-4, 100


class Cache:
    """Keys and values of the positions so far, in storage made once: (rows, heads, block_size, head size) a block."""

    def __init__(self, shape, rows, like):
        size = (rows, shape.n_head, shape.block_size, shape.n_embd // shape.n_head)
        self.keys = [torch.zeros(size, dtype=like.dtype, device=like.device) for _ in range(shape.n_layer)]
        self.values = [torch.zeros(size, dtype=like.dtype, device=like.device) for _ in range(shape.n_layer)]
        self.length = 0

    def extend(self, layer, k, v):
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Attention(nn.Module):
    def __init__(self, shape, layer):
        super().__init__()
        self.shape, self.layer = shape, layer
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=False)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd, bias=False)

    def forward(self, x, cache):
        rows, t, c = x.shape
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        q, k, v = (z.view(rows, t, self.shape.n_head, -1).transpose(1, 2) for z in (q, k, v))  # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        p = self.shape.dropout if self.training else 0.0
        # A single query sees all keys there are.
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=t > 1)
        return self.c_proj(y.transpose(1, 2).reshape(rows, t, c))


class Block(nn.Module):
    def __init__(self, shape, layer):
        super().__init__()
        c = shape.n_embd
        self.ln_1, self.attn = nn.LayerNorm(c, bias=False), Attention(shape, layer)
        self.ln_2 = nn.LayerNorm(c, bias=False)
        self.c_fc, self.c_proj = nn.Linear(c, 4 * c, bias=False), nn.Linear(4 * c, c, bias=False)
        self.drop = nn.Dropout(shape.dropout)

    def forward(self, x, cache):
        x = x + self.drop(self.attn(self.ln_1(x), cache))
        return x + self.drop(self.c_proj(F.gelu(self.c_fc(self.ln_2(x)))))


class Gpt(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd)
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.n_layer) if residual else 0.02)

    def hidden(self, ids, cache=None):
        first = 0 if cache is None else cache.length
        x = self.drop(self.wte(ids) + self.wpe.weight[first : first + ids.shape[1]])
        for block in self.blocks:
            x = block(x, cache)
        return self.ln_f(x)

    def forward(self, ids, targets):
        """The mean cross-entropy."""
        return F.cross_entropy(F.linear(self.hidden(ids), self.wte.weight).flatten(0, 1), targets.flatten())

    def step(self, ids, cache):
        """The logits of the next token of each row."""
        x = self.hidden(ids, cache)
        cache.length += ids.shape[1]
        return F.linear(x[:, -1], self.wte.weight)


def read_tokens(path, vocab_size=65):
    """The characters of a text by their order, and how many there are; without a text, random ones of a vocabulary."""
    if path is None:
        return torch.randint(vocab_size, (1 << 20,)), vocab_size
    text = Path(path).read_text(encoding="utf-8")
    ids = {char: id for id, char in enumerate(sorted(set(text)))}
    return torch.tensor([ids[char] for char in text]), len(ids)


class Training:
    """A model with its optimizer and the windows that it learns from."""

    def __init__(self, shape, tokens, device, fused=False, compiled=False, bf16=False):
        self.shape, self.tokens, self.device, self.bf16 = shape, tokens, device, bf16
        self.model = Gpt(shape).to(device).train()
        self.loss_of = torch.compile(self.model) if compiled else self.model
        decayed = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99), fused=fused)

    def update(self, lr=LR):
        """One update; gives the loss of its batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        size = self.shape.block_size
        starts = torch.randint(len(self.tokens) - size, (self.shape.batch, 1))
        windows = self.tokens[starts + torch.arange(size + 1)].to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.loss_of(windows[:, :-1], windows[:, 1:])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        finish(self.device)
        return loss.item()


def finish(device):
    """A GPU goes on working when it has been told what to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def figures(times, tokens):
    median = statistics.median(times)
    return {
        "threads": torch.get_num_threads(),
        "iters": len(times),
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(times),
        "tokens_per_s": tokens / median,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def train(args):
    shape = SHAPES[args.shape]
    tokens, vocab_size = read_tokens(args.data, shape.vocab_size)
    shape = replace(shape, vocab_size=vocab_size, batch=args.batch or shape.batch)
    training = Training(shape, tokens, args.device, args.fused, args.compile, args.bf16)
    times, loss = [], math.nan
    for n in range(args.warmup + args.iters):
        start = time.perf_counter()
        loss = training.update()
        if n >= args.warmup:
            times.append(time.perf_counter() - start)
    how = {"fused": args.fused, "compile": args.compile, "precision": "bf16" if args.bf16 else "f32"}
    return {"work": f"train {args.shape}", "device": args.device, **how, "batch": shape.batch, "loss": loss} | figures(
        times, shape.batch * shape.block_size
    )


@torch.no_grad()
def evaluate(model, tokens, rows=64):
    """The mean loss of all tokens but the first, each predicted once, in non-overlapping windows: as `tinygpt eval`."""
    model.eval()
    size, device = model.shape.block_size, model.wte.weight.device
    whole = (len(tokens) - 1) // size
    inputs, targets = tokens[: whole * size].view(whole, size), tokens[1 : whole * size + 1].view(whole, size)
    batches = list(zip(inputs.split(rows), targets.split(rows)))
    if whole * size < len(tokens) - 1:
        batches.append((tokens[None, whole * size : -1], tokens[None, whole * size + 1 :]))
    total = 0.0
    for ids, next_ids in batches:
        total += model(ids.to(device), next_ids.to(device)).item() * next_ids.numel()
    model.train()
    return total / (len(tokens) - 1)


def learning_rate(step, steps):
    """Linear warm-up, then a cosine that ends with the run."""
    if step < WARMUP_STEPS:
        return LR * (step + 1) / (WARMUP_STEPS + 1)
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return MIN_LR + 0.5 * (1 + math.cos(math.pi * progress)) * (LR - MIN_LR)


def fit(args):
    torch.manual_seed(args.seed)
    tokens, vocab_size = read_tokens(args.data)
    shape = replace(SHAPES[args.shape], vocab_size=vocab_size)
    cut = int(0.9 * len(tokens))
    training = Training(shape, tokens[:cut], args.device, args.fused, args.compile)
    steps, seconds, log = args.steps or shape.steps, 0.0, []
    for step in range(steps):
        start = time.perf_counter()
        training.update(learning_rate(step, steps))
        seconds += time.perf_counter() - start  # of training; evaluations are not counted
        if (step + 1) % args.every == 0 or step + 1 == steps:
            log.append({"step": step + 1, "seconds": seconds, "val_loss": evaluate(training.model, tokens[cut:])})
            print(json.dumps(log[-1]), file=sys.stderr)
    how = {"fused": args.fused, "compile": args.compile, "threads": torch.get_num_threads(), "seed": args.seed}
    return {"work": f"fit {args.shape}", **how, "steps": steps, "seconds": seconds, **log[-1], "log": log}


@torch.no_grad()
def decode(args):
    shape = SHAPES[args.shape]
    precision = "bf16" if args.bf16 else "f32"
    model = Gpt(shape).to(args.device, torch.bfloat16 if args.bf16 else torch.float32).eval()
    tokens, top_k = min(args.tokens, shape.block_size), min(50, shape.vocab_size)
    times = []
    for n in range(1 + args.rounds):  # the first one warms up
        cache = Cache(shape, args.rows, model.wte.weight)
        ids = torch.zeros(args.rows, 1, dtype=torch.long, device=args.device)
        start = time.perf_counter()
        for _ in range(tokens):
            logits = model.step(ids, cache).float() / 0.8
            least = logits.topk(top_k).values[:, -1:]
            ids = torch.multinomial(logits.masked_fill(logits < least, -math.inf).softmax(-1), 1)
        finish(args.device)
        if n > 0:
            times.append((time.perf_counter() - start) / tokens)
    how = {"device": args.device, "rows": args.rows, "tokens": tokens, "weights": precision}
    return {"work": f"decode {args.shape}", **how} | figures(times, args.rows)


def positive(text):
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    commands = parser.add_subparsers(dest="command", required=True)
    faster = argparse.ArgumentParser(add_help=False)
    faster.add_argument("--fused", action="store_true", help="AdamW in one kernel")
    faster.add_argument("--compile", action="store_true", help="torch.compile")

    command = commands.add_parser("train", parents=[faster], help="time updates")
    command.add_argument("shape", choices=list(SHAPES))
    command.add_argument("--iters", type=positive, default=100)
    command.add_argument("--warmup", type=int, default=5, help="updates before the first that is timed")
    command.add_argument("--batch", type=positive, help="windows in a batch")
    command.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    command.add_argument("--data", help="a text to learn; without it the tokens are random, and as fast")
    command.set_defaults(run=train)

    command = commands.add_parser("fit", parents=[faster], help="a whole recipe: seconds and validation losses")
    command.add_argument("shape", choices=["small", "baby"])
    command.add_argument("--data", required=True, help="the text")
    command.add_argument("--seed", type=int, default=1337)
    command.add_argument("--steps", type=positive, help="updates, instead of the recipe's")
    command.add_argument("--every", type=positive, default=500, help="updates between evaluations")
    command.set_defaults(run=fit)

    command = commands.add_parser("decode", help="time tokens: temperature 0.8, top-k 50 and the draw included")
    command.add_argument("shape", choices=list(SHAPES))
    command.add_argument("--rows", type=positive, default=1)
    command.add_argument("--tokens", type=positive, default=128, help="tokens of a row, from position 0")
    command.add_argument("--rounds", type=positive, default=3)
    command.add_argument("--bf16", action="store_true", help="weights, activations and cache in bfloat16")
    command.set_defaults(run=decode)

    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(args.run(args)))


main()
