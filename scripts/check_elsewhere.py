#!/usr/bin/env python3
"""Holds tinygpt's Qwen3 and Llama models against transformers, in both directions.

    python3 scripts/check_elsewhere.py [PROGRAM]     # PROGRAM: target/release/tinygpt, if no other is named

Random small models of both families, tied and untied, with grouped heads, heads of their own size, another epsilon and
scaled angles:
  theirs    built and saved by transformers, in f32 and bf16: loss and greedy text of `tinygpt eval` and `generate`
  gguf      the same, written by `tinygpt export`: logits of transformers, which has read the file
  ours      trained for some steps by `tinygpt train`: loss and greedy text of transformers on the run
Prints a line for each. Exits with 1 if a loss or a logit differs by more than 1e-4, or a text at all.

Needs: pip install torch transformers tokenizers; and gguf accelerate for the lines about GGUF, which are left out
otherwise. Stays offline.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

TOLERANCE = 1e-4
CONTEXT = 48
PROMPT, NEW = "One day", 24
# Its characters are the vocabulary of the models that transformers builds.
TEXT = "One day a fox, a bear and an owl met by the old mill. \"Who is the fastest?\" asked the fox.\n" * 3
FAMILIES = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
# What a variant has beside the base: keys of transformers, and those of `[model]`.
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=40)
VARIANTS = {
    "wide heads": (dict(head_dim=160), {"head_size": 20}),
    "narrow heads, eps": (dict(head_dim=16, rms_norm_eps=1e-3), {"head_size": 4, "norm_eps": 1e-3}),
    "llama3": (
        dict(rope_parameters=LLAMA3 | {"rope_theta": 500.0}),
        {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_block_size": 40},
    ),
    "linear": (
        dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=500.0)),
        {"rope_scaling": "linear", "rope_factor": 4.0},
    ),
}
# The reader of GGUF in transformers (up to 5.24) takes the heads of a Qwen3 for ones of 128 channels, whatever the file says.
HEAD = 128
GGUF = all(map(importlib.util.find_spec, ["gguf", "accelerate"]))


def tokenizer_json(text):
    """One of tinygpt's tokenizers of characters."""
    vocab = {char: id for id, char in enumerate(sorted(set(text)))}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": split, "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


class Check:
    def __init__(self, program, place):
        self.program, self.place, self.failed = program, place, False
        (place / "text.txt").write_text(TEXT)

    def tinygpt(self, *args):
        command = [str(self.program), *map(str, args)]
        environment = os.environ | {"TINYGPT_CACHE": str(self.place / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.place)
        if done.returncode:
            sys.exit(f"check_elsewhere: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def report(self, name, what, difference, tolerance=TOLERANCE):
        bad = not difference <= tolerance  # not a number is bad
        self.failed |= bad
        print(f"{'FAILED' if bad else 'ok':6} {name:42} {what:32} {difference:.2e}", flush=True)

    def compare(self, name, folder, model):
        """Loss and greedy text of the program on a folder, and of transformers."""
        ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"])
        losses = []
        with torch.no_grad():
            for at in range(0, len(ids) - 1, CONTEXT):
                targets = ids[at + 1 : at + 1 + CONTEXT]
                logits = model(ids[None, at : at + len(targets)]).logits[0].float()
                losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        ours = json.loads(self.tinygpt("eval", folder, "--data", "text.txt", "--device", "cpu", "--json"))
        self.report(name, "loss", abs(ours["loss"] - torch.cat(losses).mean().item()))
        row = AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
        with torch.no_grad():
            for _ in range(NEW):
                row.append(model(torch.tensor([row])).logits[0, -1].argmax().item())
        greedy = ("--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", NEW, "--device", "cpu")
        text = self.tinygpt("generate", "--checkpoint", folder, *greedy, "--json")
        tokens = json.loads(text)["samples"][0]["tokens"]
        different = sum(a != b for a, b in zip(tokens, row[-NEW:], strict=True))
        self.report(name, f"greedy text: other tokens of {NEW}", different, 0)

    def theirs(self, family, tied, kv_heads, dtype, variant=None):
        name = f"{family}, {variant or ('tied' if tied else 'untied')}, {kv_heads} kv, {str(dtype)[6:]}"
        folder = self.place / name.replace(", ", "-").replace(" ", "-")
        config, model_class = FAMILIES[family]
        vocabulary = tokenizer_json(TEXT)
        torch.manual_seed(1)
        model = model_class(config(**dict(
            vocab_size=len(vocabulary["model"]["vocab"]), hidden_size=4 * HEAD, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=kv_heads, head_dim=HEAD, max_position_embeddings=CONTEXT,
            tie_word_embeddings=tied, rms_norm_eps=1e-6, initializer_range=0.1, bos_token_id=None, eos_token_id=None,
        ) | (VARIANTS[variant][0] if variant else {}))).eval()
        for key, value in model.named_parameters():
            if "norm" in key:  # all ones hide a norm that is left out or in the place of another
                torch.nn.init.uniform_(value, 0.5, 1.5)
        model.to(dtype).save_pretrained(folder)
        # The rounded weights, computed with in f32, as tinygpt does. (`model.float()` would keep rounded angles.)
        model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
        (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        self.compare(f"theirs: {name}", folder, model)
        if GGUF and variant is None:
            alone = self.place / f"{folder.name}-gguf"  # nothing else is there to be read
            alone.mkdir()
            self.tinygpt("export", folder, "--gguf", alone / "model.gguf")
            read = AutoModelForCausalLM.from_pretrained(alone, gguf_file="model.gguf", dtype=torch.float32).eval()
            ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"])[None, :CONTEXT]
            with torch.no_grad():
                difference = (read(ids).logits - model(ids).logits).abs().max().item()
            self.report(f"gguf: {name}", "largest difference of logits", difference)

    def ours(self, family, tied, kv_heads, variant=None):
        name = f"{family}, {variant or ('tied' if tied else 'untied')}, {kv_heads} kv"
        folder = self.place / f"ours-{name.replace(', ', '-').replace(' ', '-')}"
        keys = {
            "model.norm": "rms", "model.position": "rope", "model.mlp": "swiglu", "model.qk_norm": family == "qwen3",
            "model.tie_embeddings": tied, "model.n_kv_head": kv_heads, "model.n_head": 4, "model.n_embd": 32,
            "model.n_layer": 2, "model.block_size": CONTEXT, "model.rope_theta": 5000.0, "data.stories_bytes": 30000,
            "train.max_steps": 40, "train.decay_steps": 40, "train.warmup_steps": 5, "train.eval_every": 40,
            "train.eval_batches": 2, "train.lr": 0.01,
        } | {f"model.{key}": value for key, value in (VARIANTS[variant][1] if variant else {}).items()}
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={str(value).lower()}")]
        self.tinygpt("train", "--config", "tiny", "--device", "cpu", "--out", folder, *sets)
        options = dict(output_loading_info=True, ignore_mismatched_sizes=True)
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        if problems := {kind: sorted(map(str, found)) for kind, found in info.items() if found}:
            sys.exit(f"check_elsewhere: {folder} does not load cleanly: {json.dumps(problems)}")
        if type(model) is not FAMILIES[family][1]:
            sys.exit(f"check_elsewhere: {folder} loads as a {type(model).__name__}")
        self.compare(f"ours: {name}", folder, model.eval())


def main():
    program = Path(sys.argv[1] if len(sys.argv) == 2 else "target/release/tinygpt").resolve()
    if len(sys.argv) > 2 or not program.is_file():
        sys.exit(f"usage: check_elsewhere.py [PROGRAM], where PROGRAM is a built tinygpt; there is no {program}")
    if not GGUF:
        print("the Python packages gguf and accelerate are not installed: GGUF files are not checked", file=sys.stderr)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        check = Check(program, Path(place))
        for family in FAMILIES:
            check.theirs(family, tied=True, kv_heads=2, dtype=torch.float32)
            check.theirs(family, tied=False, kv_heads=1, dtype=torch.float32)
            check.theirs(family, tied=False, kv_heads=4, dtype=torch.bfloat16)
            check.ours(family, tied=True, kv_heads=4)
            check.ours(family, tied=False, kv_heads=2)
            for variant in VARIANTS:
                check.theirs(family, tied=False, kv_heads=2, dtype=torch.float32, variant=variant)
                check.ours(family, tied=True, kv_heads=2, variant=variant)
    sys.exit("check_elsewhere: not the same" if check.failed else 0)


main()
