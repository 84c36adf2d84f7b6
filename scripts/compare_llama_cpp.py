#!/usr/bin/env python3
"""Runs tinygpt and llama.cpp on the same model, in turn, and prints medians and ratios as one table.

    cargo build --release
    python3 scripts/compare_llama_cpp.py                       # about three minutes
    python3 scripts/compare_llama_cpp.py --rounds 7 --keep /tmp/gpt2-124m

The model is a GPT-2 of the 124M shape with random weights, which `tinygpt export` writes as GGUF in f16, q8_0 and q4_0:
  decode    128 tokens one after the other from position 0. tinygpt: `bench decode` of the folder with weights of bf16, int8
            or int4, which draws with top-k 50; llama.cpp: the file of f16, q8_0 or q4_0, greedily, with its own sampler
  prompt    512 tokens at once. tinygpt: `generate` with a prompt of 512 tokens less `generate` with one of one token; llama.cpp:
            one batch
Every round starts each program once, one after the other, and never two at a time. A figure is the median over rounds. On a
machine that does anything else at the time the figures mean nothing.

Needs: pip install llama-cpp-python numpy.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = dict(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
TOKENS, PROMPT = 128, 512
# What each program stores weights as, by bits.
FORMATS = {"16 bits": ("bf16", "f16"), "8 bits": ("int8", "q8_0"), "4 bits": ("int4", "q4_0")}


def write_model(folder):
    """A folder of Hugging Face: random weights, and a tokenizer of bytes; no text has the other tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    c, rng = SHAPE["n_embd"], np.random.default_rng(1)
    shapes = {"transformer.wte.weight": (SHAPE["vocab_size"], c), "transformer.wpe.weight": (SHAPE["n_positions"], c)}
    for layer in range(SHAPE["n_layer"]):
        linear = [("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c), ("mlp.c_fc", c, 4 * c), ("mlp.c_proj", 4 * c, c)]
        for name, n_in, n_out in linear:
            shapes[f"transformer.h.{layer}.{name}.weight"] = (n_in, n_out)
            shapes[f"transformer.h.{layer}.{name}.bias"] = (n_out,)
        for name in ("ln_1", "ln_2"):
            shapes |= {f"transformer.h.{layer}.{name}.{kind}": (c,) for kind in ("weight", "bias")}
    shapes |= {f"transformer.ln_f.{kind}": (c,) for kind in ("weight", "bias")}
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % 64)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            if len(shape) == 2:
                values = rng.normal(0, 0.02, shape)
            else:
                values = np.zeros(shape) if name.endswith("bias") else np.ones(shape)
            file.write(values.astype("<f4").tobytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "activation_function": "gelu_new", **SHAPE}))
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printed]
    vocab = {chr(byte) if byte in printed else chr(256 + rest.index(byte)): byte for byte in range(256)}
    vocab |= {f"token {id}": id for id in range(256, SHAPE["vocab_size"])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": [],
        },
    }))


def llama_cpp_times(path, threads):
    """Milliseconds of a token and of the prompt in llama.cpp, with its defaults."""
    import llama_cpp as ll

    @ll.llama_log_callback
    def quiet(*_):
        """llama.cpp prints much."""

    ll.llama_log_set(quiet, None)
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
    params = ll.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = SHAPE["n_positions"], PROMPT, PROMPT
    params.n_threads = params.n_threads_batch = threads
    context = ll.llama_init_from_model(model, params)
    greedy = ll.llama_sampler_init_greedy()

    def decode(tokens):
        array = (ll.llama_token * len(tokens))(*tokens)
        if ll.llama_decode(context, ll.llama_batch_get_one(array, len(tokens))):
            sys.exit("compare_llama_cpp: llama_decode failed")

    def tokens():
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        start, token = time.perf_counter(), 0
        for _ in range(TOKENS):
            decode([token])
            token = ll.llama_sampler_sample(greedy, context, -1)
        return 1000 * (time.perf_counter() - start) / TOKENS

    def prompt():
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        start = time.perf_counter()
        decode([i % 256 for i in range(PROMPT)])
        ll.llama_sampler_sample(greedy, context, -1)
        return 1000 * (time.perf_counter() - start)

    times = {}
    for name, work, seconds in (("decode", tokens, 4), ("prompt", prompt, 2)):
        work()  # pages the file in
        start, rounds = time.perf_counter(), []
        while len(rounds) < 3 or time.perf_counter() - start < seconds:
            rounds.append(work())
        times[name] = statistics.median(rounds)
    return times


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"compare_llama_cpp: {' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


def tinygpt_times(tinygpt, folder, weights):
    bench = run([*tinygpt, "bench", "decode", folder, "--tokens", TOKENS, "--weights", weights, "--json"])
    seconds = {}
    for length in (1, PROMPT):
        text = "".join(chr(97 + i % 26) for i in range(length))  # a token a letter
        start = time.perf_counter()
        run([*tinygpt, "generate", "--checkpoint", folder, "--weights", weights, "--prompt", text, "--temperature", "0",
             "--max-new-tokens", "1", "--device", "cpu"])
        seconds[length] = time.perf_counter() - start
    return {"decode": json.loads(bench)["median_ms"], "prompt": 1000 * (seconds[PROMPT] - seconds[1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tinygpt", default="target/release/tinygpt", type=Path, help="the program")
    parser.add_argument("--rounds", default=3, type=int, help="how often each is run")
    parser.add_argument("--threads", default=2, type=int, help="of each")
    parser.add_argument("--keep", type=Path, help="a folder for the model, used again where it is there")
    parser.add_argument("--time-llama-cpp", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.time_llama_cpp:
        print(json.dumps(llama_cpp_times(args.time_llama_cpp, args.threads)))
        return
    if not args.tinygpt.is_file():
        parser.error(f"there is no {args.tinygpt}: build it, or name another by --tinygpt")
    tinygpt = [args.tinygpt.resolve(), "--threads", args.threads]
    with tempfile.TemporaryDirectory() as place:
        folder = args.keep or Path(place) / "model"
        if not (folder / "tokenizer.json").exists():
            write_model(folder)
        for _, dtype in FORMATS.values():
            if not (folder / f"{dtype}.gguf").exists():
                run([*tinygpt, "export", folder, "--gguf", folder / f"{dtype}.gguf", "--dtype", dtype])
        times = {bits: ([], []) for bits in FORMATS}
        for number in range(args.rounds):
            for bits, (weights, dtype) in FORMATS.items():
                ours, theirs = times[bits]
                ours.append(tinygpt_times(tinygpt, folder, weights))
                command = [sys.executable, __file__, "--threads", args.threads, "--time-llama-cpp", folder / f"{dtype}.gguf"]
                theirs.append(json.loads(run(command)))
                print(f"round {number + 1}, {bits}: tinygpt {ours[-1]}, llama.cpp {theirs[-1]}", file=sys.stderr, flush=True)
    print("| 124M shape | tinygpt | llama.cpp | speed-up |\n| --- | --- | --- | --- |")
    for work, n, what in (("decode", 1, "a token"), ("prompt", PROMPT, f"a prompt of {PROMPT}")):
        for bits, (weights, dtype) in FORMATS.items():
            ours, theirs = (statistics.median(time[work] for time in side) for side in times[bits])
            rate = lambda ms: f"{ms:.3g} ms, {1000 * n / ms:.3g} tokens/s"
            print(f"| {what}, {weights} and {dtype} | {rate(ours)} | {rate(theirs)} | {theirs / ours:.2f} |")


main()
