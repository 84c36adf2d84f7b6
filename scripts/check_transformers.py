#!/usr/bin/env python3
"""Holds tinygpt against transformers, in both directions.

    python3 scripts/check_transformers.py [--program PROGRAM]               # PROGRAM: target/release/tinygpt, if no other is named
    python3 scripts/check_transformers.py [--program PROGRAM] FOLDER ...    # these runs or model folders alone
    python3 scripts/check_transformers.py --write-fixtures tests/fixtures/transformers

theirs  random small models, built and saved by transformers in each form that it has, or had
ours    models of each architecture, trained for some steps by `tinygpt train`, as transformers loads them
           of these a pipeline's batch of prompts has the texts of one prompt at a time
Of each: the probabilities of all tokens at each place of a text (`tinygpt score`), which are the logits but for a constant, the loss
in windows (`tinygpt eval`), and greedy text (`tinygpt generate`). Prints a line for each model with the largest differences. Exits
with 1 if one is above 1e-4, or a token of the text is another.

The fixtures are smaller ones of the models of the first kind, with what transformers says of them in expected.json; the tests of the
program read them (tests/foreign.rs).

Needs: pip install torch transformers. Stays offline. `.ci/run slow` runs it where these are installed.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, pipeline
from transformers.utils import logging

TOLERANCE = 1e-4
NEW = 24
CONTEXT = 40
# Its characters are the vocabulary of the models that transformers builds.
TEXT = 'One day a fox, a bear and an owl met by the old mill.\n"Who is the fastest?" asked the fox.\n' * 2
PROMPT = "One day a fox"
FAMILIES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel), "llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
END = "<|endoftext|>"


# How a model is saved.


def plain(model, folder):
    model.save_pretrained(folder)


def shards(model, folder):
    model.save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def rewritten(rewrite):
    """Saved with the tensors that `rewrite` makes of those of transformers."""

    def save(model, folder):
        model.save_pretrained(folder)
        tensors = rewrite(load_file(folder / "model.safetensors"), model.config)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return save


def short_names_and_masks(tensors, config):
    """As in openai-community/gpt2: without the prefix, and with the masks of attention."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    mask = torch.ones(config.n_positions, config.n_positions).tril()
    for layer in range(config.n_layer):
        tensors[f"h.{layer}.attn.bias"] = mask[None, None].clone()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors


def with_the_tied_head(tensors, config):
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}


def pickle(model, folder):
    """Saved as older versions did: tinygpt refuses it, with the command that converts it."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


# The vocabulary of a model.


def characters(folder):
    """One of tinygpt's tokenizers of characters."""
    vocab = {char: id for id, char in enumerate(sorted(set(TEXT)))}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": split, "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return len(vocab)


def vocabulary_and_merges(folder):
    """GPT-2's files."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT], vocab_size=280, min_frequency=2, special_tokens=[END], show_progress=False)
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(dict.fromkeys(["bos_token", "eos_token", "unk_token"], END)))
    return tokenizer.get_vocab_size()


@dataclass
class Theirs:
    name: str
    family: str
    keys: dict = field(default_factory=dict)
    save: Callable = plain
    dtype: torch.dtype = torch.float32
    vocabulary: Callable = characters
    fixture: bool = True

    def folder(self, place):
        return place / re.sub("[^a-z0-9]+", "-", f"{self.family} {self.name}")

    def write(self, place, n_embd, n_head, context):
        folder = self.folder(place)
        folder.mkdir(parents=True)
        vocab_size = self.vocabulary(folder)
        config, model_class = FAMILIES[self.family]
        shape = dict(vocab_size=vocab_size, initializer_range=0.3, bos_token_id=None, eos_token_id=None)
        if self.family == "gpt2":
            shape |= dict(n_positions=context, n_embd=n_embd, n_head=n_head, n_layer=2)
        else:
            shape |= dict(
                max_position_embeddings=context, hidden_size=n_embd, intermediate_size=3 * n_embd, num_hidden_layers=2,
                num_attention_heads=n_head, num_key_value_heads=n_head, head_dim=n_embd // n_head, rms_norm_eps=1e-6,
                tie_word_embeddings=False,
            )
        torch.manual_seed(sum(map(ord, self.name)))
        keys = {key: value(n_embd) if callable(value) else value for key, value in self.keys.items()}
        model = model_class(config(**shape | keys)).eval()
        for key, value in model.named_parameters():
            # Ones and zeros hide a norm or a bias that is left out.
            if "norm" in key or ".ln_" in key or key.endswith(".bias"):
                torch.nn.init.uniform_(value, *((-0.5, 0.5) if key.endswith(".bias") else (0.5, 1.5)))
        self.save(model.to(self.dtype), folder)
        return folder


# Frequencies such that some are scaled, some are not, and some are in between.
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=20,
)
LINEAR = dict(rope_type="linear", rope_theta=500.0, factor=4.0)
THEIRS = [
    Theirs("gelu_new", "gpt2"),
    Theirs("short names, masks", "gpt2", save=rewritten(short_names_and_masks)),
    Theirs("tied head stored", "gpt2", save=rewritten(with_the_tied_head)),
    Theirs("untied", "gpt2", {"tie_word_embeddings": False}),
    Theirs("shards", "gpt2", save=shards),
    Theirs("f16", "gpt2", dtype=torch.float16),
    Theirs("bf16, shards", "gpt2", save=shards, dtype=torch.bfloat16),
    Theirs("f64", "gpt2", dtype=torch.float64, fixture=False),
    Theirs("gelu", "gpt2", {"activation_function": "gelu"}),
    Theirs("gelu_pytorch_tanh", "gpt2", {"activation_function": "gelu_pytorch_tanh"}, fixture=False),
    Theirs("gelu_fast", "gpt2", {"activation_function": "gelu_fast"}, fixture=False),
    Theirs("relu2", "gpt2", {"activation_function": "relu2"}, fixture=False),
    Theirs("unscaled attention", "gpt2", {"scale_attn_weights": False}),
    Theirs("scaled by layer", "gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    Theirs("epsilon", "gpt2", {"layer_norm_epsilon": 0.03}, fixture=False),
    Theirs("n_inner", "gpt2", {"n_inner": lambda n_embd: 3 * n_embd - 1}),
    Theirs("vocab.json, merges.txt", "gpt2", vocabulary=vocabulary_and_merges),
    Theirs("converted pickle", "gpt2", save=pickle, fixture=False),
    Theirs("untied", "llama"),
    Theirs("tied, 1 kv head, shards", "llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}, save=shards),
    Theirs("bf16", "llama", dtype=torch.bfloat16, fixture=False),
    Theirs("wide heads, epsilon", "llama", {"head_dim": lambda n_embd: n_embd // 2, "rms_norm_eps": 0.03}),
    Theirs("scaled as llama 3", "llama", {"rope_parameters": LLAMA3}),
    Theirs("linearly scaled", "llama", {"rope_parameters": LINEAR}),
    Theirs("untied, 1 kv head", "qwen3", {"num_key_value_heads": 1}),
    Theirs("narrow heads, epsilon", "qwen3", {"head_dim": lambda n_embd: n_embd // 8 * 2, "rms_norm_eps": 0.03}),
    Theirs("scaled as llama 3", "qwen3", {"rope_parameters": LLAMA3}, fixture=False),
    Theirs("tied, f16", "qwen3", {"tie_word_embeddings": True}, dtype=torch.float16, fixture=False),
]

GPT2 = {"model.norm": "layer", "model.position": "learned", "model.mlp": "gelu", "model.qk_norm": False}
LLAMA = {"model.norm": "rms", "model.position": "rope", "model.mlp": "swiglu", "model.qk_norm": False, "model.rope_theta": 5000.0}
OURS = {
    "gpt2, no biases": GPT2,
    "gpt2, biases, gelu_new": GPT2 | {"model.bias": True, "model.mlp": "gelu_new"},
    "gpt2, untied, mlp_hidden": GPT2 | {"model.tie_embeddings": False, "model.mlp_hidden": 77, "model.bias": True},
    "gpt2, bpe": GPT2 | {"data.tokenizer": "bpe", "data.vocab_size": 300},
    "gpt2, lines": GPT2 | {"data.tokenizer": "bpe", "data.vocab_size": 300, "data.corpus": "lines.txt", "data.documents": "line"},
    "llama, tied": LLAMA,
    "llama, untied, 2 kv heads": LLAMA | {"model.tie_embeddings": False, "model.n_kv_head": 2},
    "qwen3, tied": LLAMA | {"model.qk_norm": True},
    "llama, wide heads, epsilon": LLAMA | {"model.head_size": 20, "model.norm_eps": 0.03},
    "llama, linearly scaled": LLAMA | {"model.rope_scaling": "linear", "model.rope_factor": 4.0},
    "qwen3, scaled as llama 3": LLAMA | {
        "model.qk_norm": True, "model.rope_scaling": "llama3", "model.rope_factor": 8.0, "model.rope_original_block_size": 30,
    },
    "qwen3, untied, 1 kv head": LLAMA | {"model.qk_norm": True, "model.tie_embeddings": False, "model.n_kv_head": 1},
}


class Reference:
    """What transformers says of a folder."""

    def __init__(self, folder):
        options = dict(output_loading_info=True, ignore_mismatched_sizes=True)  # they come back in info
        # The rounded weights, computed with in f32, as tinygpt does.
        self.model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        self.problems = {kind: sorted(map(str, found)) for kind, found in info.items() if found}
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.context = self.model.config.max_position_embeddings

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def start(self):
        """The token that tinygpt puts before a text: the one that begins a text, the end of another, or a line break."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.get_vocab().get(END)):
            if token is not None:
                return token
        return (self.ids("\n") + [0])[0]

    def logits(self, ids):
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].double()

    def loss(self, ids):
        losses = []
        for at in range(0, len(ids) - 1, self.context):
            targets = ids[at + 1 : at + 1 + self.context]
            logits = self.logits(ids[at : at + len(targets)])
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="none"))
        return torch.cat(losses).mean().item()

    def greedy(self, ids, new):
        row = list(ids)
        for _ in range(new):
            row.append(self.logits(row)[-1].argmax().item())
        return row[len(ids) :]


class Check:
    def __init__(self, program, place):
        self.program, self.place, self.failed, self.checked = program, place, False, 0
        (place / "lines.txt").write_text("".join(f"the {n}. cat sat on the mat and saw {n * n} birds\n" for n in range(600)))
        print(f"{'':6} {'':44} {'logits':>9} {'loss':>9}  greedy text", flush=True)

    def tinygpt(self, *args, fails=False):
        command = [str(self.program), *map(str, args)]
        environment = os.environ | {"TINYGPT_CACHE": str(self.place / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.place)
        if bool(done.returncode) != fails:
            sys.exit(f"check_transformers: {shlex.join(command)}: {done.stderr.strip()}")
        return done.stderr if fails else done.stdout

    def say(self, *args):
        return json.loads(self.tinygpt(*args, "--device", "cpu", "--json"))

    def compare(self, name, folder, text, prompt, has_documents=False):
        reference = Reference(folder)
        ids, start = reference.ids(text), reference.start()
        # The text as far as it fits one window.
        head = reference.tokenizer.decode(ids[: reference.context - 1])
        rows = [start, *reference.ids(head)]
        expected = reference.logits(rows[:-1]).log_softmax(-1)
        (self.place / "head.txt").write_text(head)
        (self.place / "text.txt").write_text(text)
        scored = self.say("score", folder, "--file", "head.txt", "--top", expected.shape[1], "--context", reference.context)
        same = [token["id"] for token in scored["tokens"]] == rows[1:]
        difference = 0.0 if same else float("nan")
        for token, row in zip(scored["tokens"], expected):
            ours = torch.empty_like(row)
            for one in token["top"]:
                ours[one["id"]] = one["logprob"]
            difference = max(difference, (ours - row).abs().max().item())
        # tinygpt evaluates a document with its end.
        end = [reference.tokenizer.eos_token_id] if has_documents else []
        loss = abs(self.say("eval", folder, "--data", "text.txt")["loss"] - reference.loss(ids + end))
        prompt_ids = reference.ids(prompt)
        new = min(NEW, reference.context - len(prompt_ids))
        rules = ("--prompt", prompt, "--temperature", 0, "--max-new-tokens", new)
        tokens = self.say("generate", "--checkpoint", folder, *rules)["samples"][0]["tokens"]
        greedy = reference.greedy(prompt_ids, new)[: len(tokens)]  # it ends at an end of text
        bad = not (difference <= TOLERANCE and loss <= TOLERANCE and tokens == greedy and tokens)
        self.failed |= bad
        self.checked += 1
        text = "same" if tokens == greedy else f"differs at token {next(i for i, (a, b) in enumerate(zip(tokens, greedy)) if a != b)}"
        print(f"{'FAILED' if bad else 'ok':6} {name:44} {difference:9.1e} {loss:9.1e}  {text}", flush=True)
        return reference

    def theirs(self, variant):
        folder = variant.write(self.place / "theirs", n_embd=32, n_head=4, context=CONTEXT)
        if variant.save is pickle:
            message = self.tinygpt("info", folder, fails=True)
            command = shlex.split(message.strip().split("convert it by ")[1])
            subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
        self.compare(f"theirs: {variant.family}, {variant.name}", folder, TEXT, PROMPT)

    def ours(self, name, keys):
        folder = self.place / "ours" / re.sub("[^a-z0-9]+", "-", name)
        keys = {
            "model.n_head": 4, "model.n_embd": 32, "model.n_layer": 2, "model.block_size": CONTEXT, "data.stories_bytes": 30000,
            "data.tokenizer": "char", "train.max_steps": 40, "train.decay_steps": 40, "train.warmup_steps": 5,
            "train.eval_every": 40, "train.eval_batches": 2, "train.lr": 0.01,
        } | keys
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")]
        self.tinygpt("train", "--config", "tiny", "--device", "cpu", "--out", folder, *sets)
        text, has_documents = "One day the fox and the bear met. She was glad. " * 3, "data.documents" in keys
        reference = self.compare(f"ours: {name}", folder, text, "One day", has_documents)
        self.expect_clean(folder, reference, name.split(",")[0])
        self.expect_batches(folder, has_documents)

    def expect_batches(self, folder, has_documents):
        """What ends a document is what a batch is padded by; without documents any token will do, since the mask hides it."""
        generate = pipeline("text-generation", model=str(folder))
        if (generate.tokenizer.pad_token is not None) != has_documents:
            sys.exit(f"check_transformers: {folder}: its token to pad by is {generate.tokenizer.pad_token!r}")
        if not has_documents:
            generate.tokenizer.pad_token_id = 0  # as docs/elsewhere.md says
        rules = dict(max_new_tokens=8, do_sample=False)
        prompts = ["the cat saw", "the"]
        if generate(prompts, batch_size=2, **rules) != [generate([prompt], **rules)[0] for prompt in prompts]:
            sys.exit(f"check_transformers: {folder}: a pipeline's batch has other texts than one prompt at a time")

    def expect_clean(self, folder, reference, family=None):
        if reference.problems:
            sys.exit(f"check_transformers: {folder} does not load cleanly: {json.dumps(reference.problems)}")
        if family and type(reference.model) is not FAMILIES[family][1]:
            sys.exit(f"check_transformers: {folder} loads as a {type(reference.model).__name__}")

    def folder(self, folder):
        """A folder whose vocabulary is not known: the text is what the model itself says."""
        rules = ("--seed", 1, "--max-new-tokens", 200)
        text = self.say("generate", "--checkpoint", folder, *rules)["samples"][0]["text"]
        self.expect_clean(folder, self.compare(str(folder), folder, text, text[:20]))


def write_fixtures(place):
    for variant in THEIRS:
        if not variant.fixture:
            continue
        shutil.rmtree(variant.folder(place), ignore_errors=True)
        folder = variant.write(place, n_embd=8, n_head=2, context=24)
        reference = Reference(folder)
        text = TEXT[:16]
        ids, prompt = reference.ids(text), reference.ids(PROMPT)
        logits = reference.logits([reference.start(), *ids][:-1])
        expected = {
            "text": text, "ids": ids, "logits": [[float(f"{x:.6g}") for x in row] for row in logits.tolist()],
            "prompt": PROMPT, "greedy": reference.greedy(prompt, 24 - len(prompt)),
        }
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        (folder / "generation_config.json").unlink(missing_ok=True)
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir())} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--program", type=Path, default=Path("target/release/tinygpt"))
    parser.add_argument("--write-fixtures", type=Path, metavar="FOLDER")
    parser.add_argument("folders", type=Path, nargs="*")
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    if args.write_fixtures:
        return write_fixtures(args.write_fixtures)
    if not args.program.is_file():
        parser.error(f"there is no {args.program}: build it, or name another --program")
    with tempfile.TemporaryDirectory() as place:
        check = Check(args.program.resolve(), Path(place))
        for folder in args.folders:
            check.folder(folder.resolve())  # absolute, so that it is never taken for a name on the hub
        if not args.folders:
            for variant in THEIRS:
                check.theirs(variant)
            for name, keys in OURS.items():
                check.ours(name, keys)
    print(f"{check.checked} models: {'NOT the same' if check.failed else 'the same'}")
    sys.exit(check.failed)


main()
