#!/usr/bin/env python3
"""Holds tinygpt's GGUF files against llama.cpp, in both directions.

    python3 scripts/check_llama_cpp.py [PROGRAM] [--converter CONVERT_HF_TO_GGUF]

PROGRAM is target/release/tinygpt, if no other is named. Small models of the architectures gpt2, llama (with the angles of Llama 3 too) and qwen3, with
tokenizers of characters and byte-level BPE:
  ours        trained for some steps by `tinygpt train` and written by `tinygpt export`, in each type
  theirs      random models of transformers, written by the Python package gguf, in each type
  converted   random models of transformers, written by llama.cpp's own converter, where it is named (it is not part of the
              package: it lies in llama.cpp's repository and in the source archive of llama-cpp-python)
Of each file, llama.cpp and tinygpt must tokenize a text alike, and continue a prompt alike, greedily (up to two tokens
whose logits are within the tolerance of each other, where there are such). The log-probabilities of the tokens of a text may differ by what llama.cpp rounds: its GELU is a table of f16, its products with f16 and bf16 round
activations to that, those with q8_0 and q4_0 to blocks of 8 bits. These two are checked by numbers too: the blocks are those of the
package's reference, what is read from them are its values, and llama.cpp differs from tinygpt by no more than a few times what
the rounding of the weights does. Prints a line for each. Exits with 1 if anything differs by more.

Needs: pip install llama-cpp-python gguf torch transformers; for the converter sentencepiece too. Stays offline.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
import gguf
import llama_cpp
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from make_gguf_fixtures import LLAMA3, byte_char, lively, write

CONTEXT = 64
PROMPT, NEW = "One day", 24
TEXT = "One day a fox met a bear by the old mill."
# What a pattern of words can get wrong.
HARD = "It's  the fox's\t\ttail,\n\n  'twas 1234567 years o'Clock!? Ünïcödé €uro 日本語 \U0001F98A\U0001F43B x\r\ny z "
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
BLOCKS = ("q8_0", "q4_0")
# The largest difference of a log-probability by type, of a GPT-2 and of the others.
TOLERANCE = {"f32": (5e-3, 1e-4), "f16": (2e-2, 2e-2), "bf16": (1.6e-1, 1.6e-1)}  # bf16 has three bits less than f16
# How much more llama.cpp may differ from the weights as they were than tinygpt does, which rounds weights alone.
ACTIVATIONS = 3
CONVERTER = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"  # it knows published tokenizers by their hashes alone
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@llama_cpp.llama_log_callback
def quiet(*_):
    """llama.cpp's messages, which it prints whatever `verbose` is."""


class LlamaCpp:
    """A model in llama.cpp, with a cache of f32."""

    def __init__(self, path):
        f32 = llama_cpp.GGML_TYPE_F32
        self.llm = llama_cpp.Llama(
            str(path), n_ctx=CONTEXT, n_batch=CONTEXT, n_threads=1, n_threads_batch=1, logits_all=True, type_k=f32, type_v=f32,
            verbose=False)

    def tokenize(self, text):
        return self.llm.tokenize(text.encode(), add_bos=False, special=True)

    def logits(self, row):
        self.llm.reset()
        self.llm.eval(row)
        return torch.tensor(self.llm.scores[: len(row)]).double()

    def differs(self, prompt, tokens, tolerance):
        """How many of its greedy tokens are others than these. Behind two whose logits are within the tolerance of each other
        texts may part: then none, and a note."""
        row, different = list(prompt), 0
        for at, token in enumerate(tokens):
            logits = self.logits(row)[-1]
            best = logits.argmax().item()
            if best != token and not different and logits[best] - logits[token] <= tolerance:
                return 0, f", up to a tie at {at}"
            different += best != token
            row.append(best)
        return different, ""


class Check:
    def __init__(self, program, place):
        self.program, self.place, self.failed = program, place, False

    def run(self, command, **more):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=self.place, **more)
        if done.returncode:
            sys.exit(f"check_llama_cpp: {' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout

    def tinygpt(self, *args):
        return self.run([self.program, *args], env=os.environ | {"TINYGPT_CACHE": str(self.place / "cache")})

    def report(self, name, what, difference, tolerance):
        bad = not difference <= tolerance  # not a number is bad
        self.failed |= bad
        print(f"{'FAILED' if bad else 'ok':6} {name:44} {what:44} {difference:.2e} (at most {tolerance:.2e})", flush=True)

    def scores(self, model, text):
        """The ids of a text, the token that they start behind, and the log-probabilities that tinygpt gives to some tokens."""
        report = json.loads(self.tinygpt("score", model, text, "--device", "cpu", "--json"))
        ids = [token["id"] for token in report["tokens"]]
        logprobs = [{at["id"]: at["logprob"] for at in [token, *token["top"]]} for token in report["tokens"]]
        return ids, logprobs

    def off(self, logprobs, others):
        """The largest difference of those that both know."""
        pairs = zip(logprobs, others, strict=True)
        return max(abs(logprob - other[id]) for known, other in pairs for id, logprob in known.items() if id in other)

    def compare(self, name, path, dtype, start, hard, family):
        """What llama.cpp and tinygpt say of a file; gives the log-probabilities of both."""
        llama = LlamaCpp(path)
        ids, _ = self.scores(path, hard)
        different = sum(a != b for a, b in zip_longest(ids, llama.tokenize(hard)))
        self.report(name, f"tokens of {len(ids)} that differ", different, 0)
        ids, ours = self.scores(path, TEXT)
        theirs = torch.log_softmax(llama.logits([start, *ids]), -1)[:-1].tolist()
        theirs = [dict(enumerate(row)) for row in theirs]
        if dtype in TOLERANCE:
            tolerance = TOLERANCE[dtype][family != "gpt2"]
            self.report(name, "largest difference of a log-probability", self.off(ours, theirs), tolerance)
            prompt, _ = self.scores(path, PROMPT)
            greedy = ("--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", NEW, "--device", "cpu", "--json")
            tokens = json.loads(self.tinygpt("generate", "--checkpoint", path, *greedy))["samples"][0]["tokens"]
            different, tie = llama.differs(prompt, tokens, tolerance)
            self.report(name, f"greedy text: other tokens of {NEW}{tie}", different, 0)
        return ours, theirs

    def blocks(self, name, dtype, whole, rounded):
        """A file of blocks has the reference's of the file of f32, and is read as the reference reads it."""
        back = self.place / "back.gguf"
        self.tinygpt("export", rounded, "--gguf", back, "--overwrite")
        tensors = lambda path: {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        whole, rounded, back = tensors(whole), tensors(rounded), tensors(back)
        wrong = 0
        for key, tensor in rounded.items():
            wrong += not np.array_equal(tensor.data, gguf.quantize(whole[key].data, tensor.tensor_type))
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            wrong += not np.array_equal(back[key].data, values.reshape(back[key].data.shape))
        if not any(tensor.tensor_type == gguf.GGMLQuantizationType[TYPES[dtype]] for tensor in rounded.values()):
            sys.exit(f"check_llama_cpp: {name} has no tensor of blocks")
        self.report(f"{name}, {dtype}", f"tensors of {len(rounded)} that are not the reference's", wrong, 0)

    def every_type(self, name, path_of, start, hard, family):
        """Files of one model in each type."""
        said = {}
        for dtype in TYPES:
            said[dtype] = self.compare(f"{name}, {dtype}", path_of(dtype), dtype, start, hard, family)
        whole = said["f32"][0]
        for dtype in BLOCKS:
            ours, theirs = said[dtype]
            # The rounding of weights moves this far; llama.cpp rounds activations as well.
            bound = ACTIVATIONS * self.off(whole, ours) + TOLERANCE["f32"][0]
            self.report(f"{name}, {dtype}", "llama.cpp from the weights as they were", self.off(whole, theirs), bound)

    def ours(self, family, tokenizer, keys, note=""):
        name = f"ours: {family}, {tokenizer}{note}"
        folder = self.place / name.replace(": ", "-").replace(", ", "-")
        keys = {
            "model.n_head": 4, "model.n_embd": 64, "model.n_layer": 2, "model.block_size": CONTEXT, "data.tokenizer": tokenizer,
            "data.stories_bytes": 60000, "train.max_steps": 120, "train.decay_steps": 120, "train.warmup_steps": 5,
            "train.eval_every": 60, "train.eval_batches": 2, "train.lr": 0.01, **keys,
        }
        if tokenizer == "bpe":
            keys["data.vocab_size"] = 384
        if family != "gpt2":
            keys |= {"model.norm": "rms", "model.position": "rope", "model.mlp": "swiglu", "model.qk_norm": family == "qwen3"}
        else:
            keys |= {"model.norm": "layer", "model.position": "learned", "model.qk_norm": False}
        sets = [word for key, value in keys.items() for word in ("--set", f"{key}={str(value).lower()}")]
        self.tinygpt("train", "--config", "tiny", "--device", "cpu", "--out", folder, *sets)
        files = {dtype: folder / f"{dtype}.gguf" for dtype in TYPES}
        for dtype, path in files.items():
            self.tinygpt("export", folder, "--gguf", path, "--dtype", dtype)
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        start = vocabulary["\n" if tokenizer == "char" else "Ċ"]
        hard = HARD if tokenizer == "bpe" else "".join(char for char in sorted(vocabulary)) + TEXT
        self.every_type(name, files.get, start, hard, family)
        for dtype in BLOCKS:
            self.blocks(name, dtype, files["f32"], files[dtype])

    def theirs(self, name, model):
        family, name = ("llama" if name == "llama3" else name), f"theirs: {name}"
        alphabet = sorted(set(TEXT + PROMPT + "\né€"))
        tokens = ["".join(map(byte_char, char.encode())) for char in alphabet]
        merges = ["Ã ©", "â Ĥ", "âĤ ¬"]  # the bytes of é and of €
        model = lively(model(len(tokens)))

        def path_of(dtype):
            path = self.place / f"{name.removeprefix('theirs: ')}-{dtype}.gguf"
            # Each file is of the weights of the one before, rounded: f32 comes first, and is not rounded.
            write(path, family, gguf.GGMLQuantizationType[TYPES[dtype]], model, tokens, merges)
            return path

        self.every_type(name, path_of, alphabet.index("\n"), "".join(alphabet) + TEXT, family)

    def converted(self, name, model, converter):
        folder = self.place / f"converted-{name}"
        family, name = ("llama" if name == "llama3" else name), f"converted: {name}"
        merges = [["O", "n"], ["On", "e"], ["Ġ", "d"]]
        tokens = [*map(byte_char, range(256)), *map("".join, merges)]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        lively(model(len(tokens))).save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps({
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": {token: id for id, token in enumerate(tokens)}, "merges": merges,
            },
        }))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))

        def path_of(dtype):
            path = folder.with_suffix(f".{dtype}.gguf")
            wrapped = [sys.executable, "-c", CONVERTER, converter.parent, converter]
            self.run([*wrapped, folder, "--outfile", path, "--outtype", dtype])
            return path

        self.every_type(name, path_of, tokens.index("Ċ"), HARD, family)


def transformers_models():
    """Functions from the size of a vocabulary to a model."""
    common = dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None)
    gpt2 = dict(n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    return {
        "gpt2": lambda n: GPT2LMHeadModel(GPT2Config(vocab_size=n, n_ctx=CONTEXT, **gpt2)),
        "llama": lambda n: LlamaForCausalLM(LlamaConfig(vocab_size=n, tie_word_embeddings=False, **common)),
        "llama3": lambda n: LlamaForCausalLM(
            LlamaConfig(vocab_size=n, tie_word_embeddings=False, rope_parameters=LLAMA3, **common)),
        "qwen3": lambda n: Qwen3ForCausalLM(Qwen3Config(vocab_size=n, tie_word_embeddings=True, **common)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default="target/release/tinygpt", type=Path)
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    args = parser.parse_args()
    if not args.program.is_file():
        parser.error(f"there is no {args.program}: name a built tinygpt")
    torch.set_num_threads(1)
    llama_cpp.llama_log_set(quiet, None)
    with tempfile.TemporaryDirectory() as place:
        check = Check(args.program.resolve(), Path(place))
        check.ours("gpt2", "bpe", {"model.mlp": "gelu_new", "model.bias": True})
        check.ours("gpt2", "char", {"model.mlp": "gelu"})
        check.ours("llama", "char", {"model.n_kv_head": 2, "model.tie_embeddings": False, "model.rope_theta": 5000.0})
        angles = {"model.rope_scaling": "llama3", "model.rope_factor": 8.0, "model.rope_original_block_size": 30}
        check.ours("llama", "char", angles, ", angles of Llama 3")
        check.ours("qwen3", "bpe", {"model.n_kv_head": 1})
        for family, model in transformers_models().items():
            check.theirs(family, model)
            if args.converter:
                check.converted(family, model, args.converter.resolve())
    sys.exit("check_llama_cpp: not the same" if check.failed else 0)


main()
