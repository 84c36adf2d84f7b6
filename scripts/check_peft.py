#!/usr/bin/env python3
"""Holds tinygpt's adapters against peft, in both directions.

    python3 scripts/check_peft.py [PROGRAM]       # PROGRAM: target/release/tinygpt, if no other is named
    python3 scripts/check_peft.py --fixtures      # makes tests/fixtures/peft anew

Small random models of transformers, a GPT-2 (whose layers are of the class Conv1D), a Qwen3 and a Llama:
  theirs    an adapter of random numbers by peft: log-probabilities of `tinygpt score --adapter`, and of the model that
            `tinygpt export --merge` writes, read by transformers
  ours      trained for some updates by `tinygpt train --init-from`: logits of peft over the base, beside those of the run's
            merged model in transformers, and the log-probabilities of `tinygpt score` on the run
Prints a line for each. Exits with 1 if a number differs by more than 1e-4.

Needs: pip install torch transformers tokenizers peft. Stays offline.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)
from transformers.utils import logging

TOLERANCE = 1e-4
# Its characters are the vocabulary.
TEXT = 'One day a fox, a bear and an owl met by the old mill. "Who is the fastest?" asked the fox.\n' * 3
FIXTURES = Path(__file__).parent.parent / "tests/fixtures/peft"
TRAIN = """[data]
val_fraction = 0.3
[train]
batch_size = 2
max_steps = 20
warmup_steps = 2
eval_every = 10
lr = 1e-2
"""


def tokenizer_json(text):
    """One of tinygpt's tokenizers of characters."""
    vocab = {char: id for id, char in enumerate(sorted(set(text)))}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": split, "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


def encode(text):
    vocab = {char: id for id, char in enumerate(sorted(set(TEXT)))}
    return torch.tensor([vocab[char] for char in text])


def models(width):
    """Random models of a width, by name, each with the targets of two adapters."""
    vocab_size, ends = len(set(TEXT)), {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    llama = {
        "vocab_size": vocab_size, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": width // 2, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-6, "attn_implementation": "eager", **ends,
    }
    gpt2 = GPT2Config(
        vocab_size=vocab_size, n_positions=32, n_embd=width, n_layer=2, n_head=2, attn_implementation="eager", **ends
    )
    return {
        "gpt2": (GPT2LMHeadModel(gpt2), [["c_attn"], ["attn.c_proj", "c_fc"]]),
        "qwen3": (Qwen3ForCausalLM(Qwen3Config(**llama)), [["q_proj", "v_proj", "down_proj"], ["k_proj"]]),
        "llama": (LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True)), [["q_proj", "v_proj"], ["o_proj", "gate_proj", "up_proj"]]),
    }


def make_base(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0, 0.2)
    model.eval().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(TEXT)))


def make_adapter(model, folder, rank, alpha, targets, rslora):
    """An adapter of random numbers, and the model with it."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_rslora=rslora, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    adapted.eval().save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return adapted


def logits(model, text=TEXT):
    with torch.no_grad():
        return model(encode(text)[None]).logits[0].float()


def logprob(model, text):
    """The log-probability of a text behind a line break, in nats."""
    ids = encode("\n" + text)
    with torch.no_grad():
        rows = model(ids[None, :-1]).logits[0].double().log_softmax(-1)
    return rows.gather(1, ids[1:, None]).sum().item()


def mean_loss(model, text, context):
    ids, losses = encode(text), []
    for at in range(0, len(ids) - 1, context):
        targets = ids[at + 1 : at + 1 + context]
        with torch.no_grad():
            rows = model(ids[None, at : at + len(targets)]).logits[0].double()
        losses.append(torch.nn.functional.cross_entropy(rows, targets, reduction="none"))
    return torch.cat(losses).mean().item()


class Check:
    def __init__(self, program, place):
        self.program, self.place, self.failed = program, place, False

    def tinygpt(self, *args):
        command = [str(self.program), *map(str, args)]
        environment = os.environ | {"TINYGPT_CACHE": str(self.place / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.place)
        if done.returncode:
            sys.exit(f"check_peft: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def report(self, name, what, difference):
        bad = not difference <= TOLERANCE  # not a number is bad
        self.failed |= bad
        print(f"{'FAILED' if bad else 'ok':6} {name:42} {what:44} {difference:.2e}", flush=True)

    def score(self, name, what, model, *args):
        """The log-probability of a text by the program, and by a model of torch, for each token."""
        text = TEXT[:31]
        ours = json.loads(self.tinygpt("score", *args, text, "--json"))["logprob"]
        self.report(name, what, abs(ours - logprob(model, text)) / len(text))

    def theirs(self, name, model, rank, alpha, targets, rslora):
        folder = self.place / name
        base, adapter, merged = folder / "base", folder / "adapter", folder / "merged"
        make_base(model, base)
        adapted = make_adapter(model, adapter, rank, alpha, targets, rslora)
        self.score(name, "peft's adapter, score", adapted, base, "--adapter", adapter)
        self.tinygpt("export", base, "--adapter", adapter, "--merge", "--out", merged)
        ours = AutoModelForCausalLM.from_pretrained(merged, attn_implementation="eager").eval()
        self.report(name, "peft's adapter, merged here", difference(logits(ours, TEXT[:31]), logits(adapted, TEXT[:31])))

    def ours(self, name, model, rank, alpha, targets):
        folder = self.place / name
        base, run = folder / "base", folder / "run"
        make_base(model, base)
        (folder / "text.txt").write_text(TEXT)
        (folder / "train.toml").write_text(TRAIN + f"[lora]\nrank = {rank}\nalpha = {alpha}\ntargets = {json.dumps(targets)}\n")
        self.tinygpt("train", "--init-from", base, "--config", folder / "train.toml", "--data", folder / "text.txt", "--out", run, "--device", "cpu")
        fresh = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        adapted = PeftModel.from_pretrained(fresh, run / "adapter").eval()
        text = TEXT[:31]
        ours = AutoModelForCausalLM.from_pretrained(run, attn_implementation="eager").eval()
        self.report(name, "our adapter in peft, beside our merged model", difference(logits(ours, text), logits(adapted, text)))
        self.score(name, "our adapter in peft, beside score of the run", adapted, run)
        with adapted.disable_adapter():
            moved = difference(logits(adapted, text), logits(ours, text))
        if moved < 0.01:
            sys.exit(f"check_peft: {name}: the adapter changes nothing ({moved})")


def difference(a, b):
    return (a - b).abs().max().item()


def fixtures():
    torch.manual_seed(1)
    for name, (rank, alpha, rslora) in {"gpt2": (3, 6, False), "qwen3": (2, 3, True)}.items():
        model, targets = models(8)[name]
        folder = FIXTURES / name
        shutil.rmtree(folder, ignore_errors=True)
        make_base(model, folder / "base")
        # generate and eval do without it.
        (folder / "base/generation_config.json").unlink()
        base_loss = mean_loss(model, TEXT, 32)
        adapted = make_adapter(model, folder / "adapter", rank, alpha, targets[0], rslora)
        expected = {"text": TEXT, "base_loss": base_loss, "loss": mean_loss(adapted, TEXT, 32)}
        (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        print(f"{folder}: {expected['base_loss']:.4f} {expected['loss']:.4f}")


def main():
    logging.set_verbosity_error()
    if sys.argv[1:] == ["--fixtures"]:
        return fixtures()
    program = Path(sys.argv[1] if sys.argv[1:] else "target/release/tinygpt").resolve()
    with tempfile.TemporaryDirectory() as place:
        check = Check(program, Path(place))
        torch.manual_seed(7)
        for kind in models(32):
            for i in range(2):
                for direction in ["theirs", "ours"]:
                    model, targets = models(32)[kind]
                    name = f"{kind} {','.join(targets[i])}"
                    (check.place / direction).mkdir(exist_ok=True)
                    rest = [[8, 16], [3, 7]][i]
                    if direction == "theirs":
                        check.theirs(f"{direction}/{name}", model, *rest, targets[i], rslora=i == 1)
                    else:
                        check.ours(f"{direction}/{name}", model, *rest, targets[i])
    if check.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
