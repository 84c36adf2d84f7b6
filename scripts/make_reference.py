#!/usr/bin/env python3
"""Writes the reference fixtures that tinygpt's Rust engines are compared with.

    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install torch numpy safetensors transformers   # the CPU build of torch does
    /tmp/venv/bin/python scripts/make_reference.py [OUT_FOLDER]      # default: tests/fixtures

Ten files: `reference_gelu_nobias.safetensors` (exact GELU, no biases), `reference_gelu_new_bias.safetensors` (tanh GELU,
biases), and for the keys of `[model]` that GPT-2 lacks: `reference_rms_norm`, `reference_rope`, `reference_untied`,
`reference_relu2_cap` (squared ReLU, another width, capped logits) and `reference_qwen3` (RMSNorm, RoPE, QK-norm, SwiGLU, grouped
heads). `reference_muon` is the last of these, updated by Muon. `reference_rope_linear` and `reference_rope_llama3` have heads that do
not share out the channels, another epsilon, and scaled angles.
The model below is PyTorch code of its own and shares nothing with the Rust. Initial weights are
drawn in float32; everything after that is computed in float64 and rounded to float32 once, when it is stored.
In each file:

    param/<name>   initial weights, under Hugging Face's GPT-2 names; matrices are (in, out): y = x @ W + b
    ids, targets   int64 (steps, batch, time), one batch per update
    logits, loss   of batch 0 at the initial weights
    grad/<name>    gradients of that loss, before clipping
    losses         the loss of each batch just before the update made from it
    grad_norms     the global gradient norm of each update, before clipping
    final/<name>   weights after the last update

The metadata strings `config` and `train` hold the model's and the optimizer's settings as JSON.

Two things to know when comparing float32 results with `final/`. The gradient of the key third of every `c_attn.bias` is
zero in exact arithmetic without rotated keys (softmax ignores a shift), so AdamW turns float32 rounding noise there into visible steps: leave
that third out. Elsewhere AdamW magnifies the rounding of very small gradients; the script prints by how much, from a
second run of its own in float32.
"""

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

CONFIG = dict(vocab_size=23, block_size=12, n_layer=2, n_head=4, n_embd=20)
TRAIN = dict(lr=1e-2, min_lr=1e-3, warmup_steps=3, decay_steps=10, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
STEPS, BATCH = 10, 3
VARIANTS = {
    "reference_gelu_nobias": dict(bias=False, activation="gelu", clip=1.6, seed=4),
    "reference_gelu_new_bias": dict(bias=True, activation="gelu_new", clip=1.8, seed=4),
    "reference_rms_norm": dict(bias=False, activation="gelu", clip=1.6, seed=4, norm="rms"),
    "reference_rope": dict(bias=True, activation="gelu_new", clip=1.8, seed=4, position="rope", rope_theta=100.0, n_head=2),
    "reference_untied": dict(bias=False, activation="gelu", clip=1.6, seed=4, tie_embeddings=False),
    "reference_relu2_cap": dict(bias=True, mlp="relu2", clip=2.1, seed=4, mlp_hidden=34, logit_cap=4.0),
    "reference_qwen3": dict(
        bias=False, mlp="swiglu", clip=2.2, seed=4, norm="rms", position="rope", rope_theta=100.0, n_head=2, n_kv_head=1,
        qk_norm=True, mlp_hidden=26),
    "reference_muon": dict(
        bias=False, mlp="swiglu", clip=2.2, seed=4, norm="rms", position="rope", rope_theta=100.0, n_head=2, n_kv_head=1,
        qk_norm=True, mlp_hidden=26, optimizer="muon", lr_matrices=2e-2, muon_momentum=0.9, muon_steps=3),
    "reference_rope_linear": dict(
        bias=True, activation="gelu_new", clip=1.5, seed=4, norm_eps=1e-2, position="rope", rope_theta=100.0,
        rope_scaling="linear", rope_factor=4.0, n_head=2, head_size=6),
    "reference_rope_llama3": dict(
        bias=False, mlp="swiglu", clip=2.9, seed=4, norm="rms", norm_eps=1e-2, position="rope", rope_theta=100.0,
        rope_scaling="llama3", rope_factor=8.0, rope_low_freq_factor=1.0, rope_high_freq_factor=4.0, rope_original_block_size=40,
        n_head=2, head_size=6, n_kv_head=1, qk_norm=True, mlp_hidden=26),
}
# What belongs to the optimizer.
OF_TRAINING = ("clip", "seed", "optimizer", "lr_matrices", "muon_momentum", "muon_steps")


def head_size(cfg):
    return cfg.get("head_size", cfg["n_embd"] // cfg["n_head"])


def init_params(cfg, rng):
    """Initial weights by name, float32. Larger than GPT-2's, so that attention and the norms are far from trivial."""
    C, params = cfg["n_embd"], {}
    hs = head_size(cfg)
    kv = cfg.get("n_kv_head", cfg["n_head"]) * hs
    hidden = cfg.get("mlp_hidden", 4 * C)
    gated = cfg.get("mlp") == "swiglu"

    def normal(name, *shape, mean=0.0, std=0.08):
        params[name] = torch.from_numpy((mean + std * rng.standard_normal(shape)).astype(np.float32))

    def linear(name, n_in, n_out, std):
        normal(f"{name}.weight", n_in, n_out, std=std)
        if cfg["bias"]:
            normal(f"{name}.bias", n_out)

    def norm(name, n=C):
        normal(f"{name}.weight", n, mean=1.0, std=0.2)
        if cfg["bias"] and cfg.get("norm") != "rms":
            normal(f"{name}.bias", C)

    normal("transformer.wte.weight", cfg["vocab_size"], C)
    if cfg.get("position") != "rope":
        normal("transformer.wpe.weight", cfg["block_size"], C)
    for i in range(cfg["n_layer"]):
        h = f"transformer.h.{i}"
        norm(f"{h}.ln_1")
        linear(f"{h}.attn.c_attn", C, cfg["n_head"] * hs + 2 * kv, std=0.24)
        if cfg.get("qk_norm"):
            norm(f"{h}.attn.q_norm", hs)
            norm(f"{h}.attn.k_norm", hs)
        linear(f"{h}.attn.c_proj", cfg["n_head"] * hs, C, std=0.12)
        norm(f"{h}.ln_2")
        linear(f"{h}.mlp.c_fc", C, 2 * hidden if gated else hidden, std=0.36)
        linear(f"{h}.mlp.c_proj", hidden, C, std=0.16)
    norm("transformer.ln_f")
    if not cfg.get("tie_embeddings", True):
        normal("lm_head.weight", cfg["vocab_size"], C)
    return params


def scaled(cfg, rate):
    """Angles for each position: Chen et al., 2023, and `apply_scaling` of Meta's llama-models for Llama 3.1."""
    factor = cfg.get("rope_factor")
    if cfg.get("rope_scaling") == "linear":
        return rate / factor
    if cfg.get("rope_scaling") != "llama3":
        return rate
    old, low, high = (cfg[f"rope_{key}"] for key in ("original_block_size", "low_freq_factor", "high_freq_factor"))
    new = []
    for freq in rate.tolist():
        wavelen = 2 * math.pi / freq
        if wavelen < old / high:
            new.append(freq)
        elif wavelen > old / low:
            new.append(freq / factor)
        else:
            smooth = (old / wavelen - low) / (high - low)
            new.append((1 - smooth) * freq / factor + smooth * freq)
    return torch.tensor(new, dtype=torch.float64)


def forward(cfg, p, ids):
    """Logits (batch, time, vocabulary): GPT-2 with pre-norm blocks; positions, norms and head as the keys say."""
    (B, T), C, H = ids.shape, cfg["n_embd"], cfg["n_head"]
    K = cfg.get("n_kv_head", H)
    hs = head_size(cfg)
    rope, mlp, cap = cfg.get("position") == "rope", cfg.get("mlp", cfg.get("activation")), cfg.get("logit_cap", 0)

    def linear(name, x):
        y = x @ p[f"{name}.weight"]
        return y + p[f"{name}.bias"] if cfg["bias"] else y

    def norm(name, x):
        if cfg.get("norm") == "rms":
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + cfg.get("norm_eps", 1e-6)) * p[f"{name}.weight"]
        centred = x - x.mean(-1, keepdim=True)
        y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + cfg.get("norm_eps", 1e-5)) * p[f"{name}.weight"]
        return y + p[f"{name}.bias"] if cfg["bias"] else y

    def activation(x):
        if mlp == "swiglu":
            gate, up = x.chunk(2, dim=-1)
            return gate * torch.sigmoid(gate) * up
        if mlp == "relu2":
            return x.clamp(min=0) ** 2
        if mlp == "gelu":
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def rotate(x):
        """Channel i of a head, paired with channel i + hs / 2, turns by position * theta^(-2 i / hs), scaled."""
        if not rope:
            return x
        half = hs // 2
        rate = scaled(cfg, cfg["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half))
        angle = torch.arange(T, dtype=torch.float64)[:, None] * rate
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.split(half, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    x = p["transformer.wte.weight"][ids]
    if not rope:
        x = x + p["transformer.wpe.weight"][:T]
    for i in range(cfg["n_layer"]):
        h = f"transformer.h.{i}"
        qkv = linear(f"{h}.attn.c_attn", norm(f"{h}.ln_1", x))
        q, k, v = (part.view(B, T, -1, hs).transpose(1, 2) for part in qkv.split([H * hs, K * hs, K * hs], dim=-1))
        if cfg.get("qk_norm"):
            q, k = norm(f"{h}.attn.q_norm", q), norm(f"{h}.attn.k_norm", k)
        if K != H:
            k, v = (part.repeat_interleave(H // K, dim=1) for part in (k, v))
        scores = rotate(q) @ rotate(k).transpose(-2, -1) / math.sqrt(hs)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        x = x + linear(f"{h}.attn.c_proj", mixed.transpose(1, 2).reshape(B, T, H * hs))
        x = x + linear(f"{h}.mlp.c_proj", activation(linear(f"{h}.mlp.c_fc", norm(f"{h}.ln_2", x))))
    head = p["transformer.wte.weight" if cfg.get("tie_embeddings", True) else "lm_head.weight"]
    logits = norm("transformer.ln_f", x) @ head.T
    return cap * torch.tanh(logits / cap) if cap else logits


def make_batches(cfg, rng):
    """Windows of noisy arithmetic sequences modulo the vocabulary: something that ten updates begin to learn."""
    V, T = cfg["vocab_size"], cfg["block_size"]
    seq = np.zeros((STEPS, BATCH, T + 1), dtype=np.int64)
    seq[..., 0] = rng.randint(0, V, (STEPS, BATCH))
    for t in range(T):
        random = rng.randint(0, V, (STEPS, BATCH))
        seq[..., t + 1] = np.where(rng.random_sample((STEPS, BATCH)) < 0.15, random, (seq[..., t] + 3) % V)
    return torch.from_numpy(seq[..., :-1].copy()), torch.from_numpy(seq[..., 1:].copy())


def learning_rate(train, it):
    if it < train["warmup_steps"]:
        return train["lr"] * (it + 1) / (train["warmup_steps"] + 1)
    if it > train["decay_steps"]:
        return train["min_lr"]
    ratio = (it - train["warmup_steps"]) / (train["decay_steps"] - train["warmup_steps"])
    return train["min_lr"] + 0.5 * (1 + math.cos(math.pi * ratio)) * (train["lr"] - train["min_lr"])


# Amsel et al., 2025, "The Polar Express".
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def muon_step(cfg, train, lr, name, w, momentum):
    """Jordan et al., 2024, for a matrix (in, out); layers that lie side by side are matrices of their own."""
    hs = head_size(cfg)
    kv = cfg.get("n_kv_head", cfg["n_head"]) * hs
    parts = [w.shape[1]]
    if name.endswith("attn.c_attn.weight"):
        parts = [cfg["n_head"] * hs, kv, kv]
    elif name.endswith("mlp.c_fc.weight") and cfg.get("mlp") == "swiglu":
        parts = [w.shape[1] // 2] * 2
    mu = train["muon_momentum"]
    momentum.lerp_(w.grad, 1 - mu)
    at = 0
    for columns in parts:
        part = slice(at, at + columns)
        at += columns
        x = w.grad[:, part].lerp(momentum[:, part], mu).T  # (out, in), as Muon is written
        flip = x.shape[0] > x.shape[1]
        x = x.T if flip else x
        x = x / (x.norm() * 1.02 + 1e-7)
        for a, b, c in POLAR_EXPRESS[: train["muon_steps"]]:
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if flip else x
        with torch.no_grad():
            w[:, part] *= 1 - lr * train["weight_decay"]
            w[:, part] -= lr * math.sqrt(max(1, x.shape[0] / x.shape[1])) * x.T


def run(cfg, train, initial, ids, targets, dtype):
    """Everything the fixture holds but its inputs, computed in `dtype`."""
    p = {name: w.to(dtype, copy=True).requires_grad_() for name, w in initial.items()}
    muon = {name: w for name, w in p.items() if train.get("optimizer") == "muon" and w.dim() == 2 and ".h." in name}
    momenta = {name: torch.zeros_like(w) for name, w in muon.items()}
    adamw = [w for name, w in p.items() if name not in muon]
    groups = [
        dict(params=[w for w in adamw if w.dim() >= 2], weight_decay=train["weight_decay"]),
        dict(params=[w for w in adamw if w.dim() < 2], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, betas=(train["beta1"], train["beta2"]), eps=train["eps"])
    out, losses, grad_norms = {}, [], []
    for it in range(STEPS):
        logits = forward(cfg, p, ids[it])
        loss = F.cross_entropy(logits.flatten(0, 1), targets[it].flatten())
        for w in p.values():
            w.grad = None
        loss.backward()
        if it == 0:
            out |= {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
            out |= {f"grad/{name}": w.grad.clone() for name, w in p.items()}
        losses.append(loss.detach())
        grad_norms.append(torch.nn.utils.clip_grad_norm_(p.values(), train["clip"]))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(train, it)
        optimizer.step()
        for name, w in muon.items():
            lr = train["lr_matrices"] * learning_rate(train, it) / train["lr"]
            muon_step(cfg, train, lr, name, w, momenta[name])
    out |= {"losses": torch.stack(losses), "grad_norms": torch.stack(grad_norms)}
    return out | {f"final/{name}": w.detach() for name, w in p.items()}


def write_safetensors(path, tensors, metadata):
    """The format by hand: the library's own writer orders the metadata at random, so files would differ from run to run."""
    kinds = {torch.int64: "I64", torch.float32: "F32"}
    header, data = {"__metadata__": metadata}, b""
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].dtype != torch.int64, item[0])):
        raw = t.contiguous().numpy().tobytes()
        header[name] = dict(dtype=kinds[t.dtype], shape=list(t.shape), data_offsets=[len(data), len(data) + len(raw)])
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def check_with_transformers(cfg, params, ids, logits):
    if cfg.keys() & {"norm", "position", "tie_embeddings", "mlp"}:
        return "no GPT-2: not compared with transformers"
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return "transformers is not installed: not compared"
    hf = GPT2LMHeadModel(GPT2Config(
        vocab_size=cfg["vocab_size"], n_positions=cfg["block_size"], n_embd=cfg["n_embd"], n_layer=cfg["n_layer"],
        n_head=cfg["n_head"], activation_function=cfg["activation"], resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=None, eos_token_id=None)).double().eval()
    state = dict(params)
    for name in hf.state_dict():  # a model without biases is one whose biases are zero
        if name.endswith(".bias") and name not in state:
            state[name] = torch.zeros_like(hf.state_dict()[name])
    missing, unexpected = hf.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    with torch.no_grad():
        diff = (hf(ids).logits - logits).abs().max().item()
    assert diff < 1e-5, f"logits differ from transformers by {diff:.2e}"
    return f"logits agree with transformers' GPT2LMHeadModel (max difference {diff:.1e})"


def rounding(cfg, name, exact, single):
    """max|difference| / max|reference| of a float32 run, the key third of attention biases left out."""
    a, b = exact.double(), single.double()
    if name.endswith("c_attn.bias") and cfg.get("position") != "rope":
        keep = [i for i in range(len(a)) if i // cfg["n_embd"] != 1]
        a, b = a[keep], b[keep]
    return ((a - b).abs().max() / a.abs().max()).item()


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "tests" / "fixtures")
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for stem, variant in VARIANTS.items():
        cfg = CONFIG | {key: value for key, value in variant.items() if key not in OF_TRAINING}
        train = TRAIN | {key: variant[key] for key in OF_TRAINING if key in variant and key != "seed"}
        rng = np.random.RandomState(variant["seed"])  # its stream is frozen by NumPy's policy
        params = init_params(cfg, rng)
        ids, targets = make_batches(cfg, rng)
        exact = run(cfg, train, params, ids, targets, torch.float64)
        single = run(cfg, train, params, ids, targets, torch.float32)
        clipped = [norm.item() > train["clip"] for norm in exact["grad_norms"]]
        assert any(clipped) and not all(clipped), f"clipping should be active in some steps only: {exact['grad_norms']}"

        tensors = {"ids": ids, "targets": targets} | {f"param/{name}": w for name, w in params.items()}
        tensors |= {name: t.float() for name, t in exact.items()}
        path = folder / f"{stem}.safetensors"
        write_safetensors(path, tensors, {"config": json.dumps(cfg), "train": json.dumps(train)})
        total += path.stat().st_size

        print(f"{path}: {path.stat().st_size} bytes, {len(tensors)} tensors")
        print(f"  config {json.dumps(cfg)}\n  train  {json.dumps(train)}")
        print(f"  {check_with_transformers(cfg, params, ids[0], exact['logits'])}")
        print("  step  learning rate     loss  grad norm")
        for it in range(STEPS):
            loss, norm = exact["losses"][it].item(), exact["grad_norms"][it].item()
            print(f"  {it:4}  {learning_rate(train, it):13.6f} {loss:8.5f} {norm:10.5f}{'  clipped' if clipped[it] else ''}")
        print("  tensor                                shape           largest   float32 run, relative difference")
        for name, t in sorted(tensors.items()):
            error = f"{rounding(cfg, name, exact[name], single[name]):.1e}" if name in exact else ""
            print(f"  {name:<44} {str(tuple(t.shape)):<12} {t.abs().max().item():>8.3g}   {error}")
    print(f"total {total} bytes")


if __name__ == "__main__":
    main()
