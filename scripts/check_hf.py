#!/usr/bin/env python3
"""Loads a run folder with transformers and prints what the model says, as one JSON object.

    python scripts/check_hf.py RUN [TEXT]      # needs torch, transformers, tokenizers; stays offline
{"ids": the text's tokens (without TEXT: 0, 1, 2, ...), "logits_last": the first 8 logits after the last token,
"loss": mean over all tokens but the first, each predicted once, in non-overlapping windows of the context length}
Exits with 1 and a message if the folder does not load as it stands.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def tokenize(run, text):
    if not (run / "tokenizer.json").is_file():
        sys.exit(f"check_hf: {run} has no tokenizer.json to read a text with")
    ids = AutoTokenizer.from_pretrained(run)(text)["input_ids"]
    plain = Tokenizer.from_file(str(run / "tokenizer.json")).encode(text).ids
    if ids != plain:
        sys.exit(f"check_hf: AutoTokenizer gives {ids[:16]}..., the tokenizers library {plain[:16]}...")
    return ids


def main():
    if len(sys.argv) not in (2, 3) or not (Path(sys.argv[1]) / "config.json").is_file():
        sys.exit("usage: check_hf.py RUN [TEXT], where RUN is a run folder: one with a config.json")
    torch.set_num_threads(1)
    run = Path(sys.argv[1]).resolve()  # absolute, so that it is never taken for a name on the hub
    try:
        if (kind := AutoConfig.from_pretrained(run).model_type) not in ("gpt2", "qwen3", "llama"):
            raise ValueError(f"its model_type is {kind}, not gpt2, qwen3 or llama")
        options = dict(output_loading_info=True, ignore_mismatched_sizes=True)  # they come back in info
        model, info = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32, **options)
        size, vocab = model.config.max_position_embeddings, model.config.vocab_size  # of a GPT-2 n_positions
        ids = tokenize(run, sys.argv[2]) if len(sys.argv) == 3 else list(range(min(size, vocab)))
    except Exception as error:  # whatever it is, this is its message
        sys.exit(f"check_hf: {run} does not load: {type(error).__name__}: {error}")
    if problems := {kind: sorted(map(str, found)) for kind, found in info.items() if found}:
        sys.exit(f"check_hf: {run} does not load cleanly: {json.dumps(problems)}")
    if not ids or max(ids) >= vocab:
        sys.exit(f"check_hf: no tokens, or one outside the vocabulary of {vocab}")
    t, losses = torch.tensor(ids), []
    with torch.no_grad():
        last = model.eval()(t[None, -size:]).logits[0, -1, :8].tolist()
        for i in range(0, len(ids) - 1, size):
            targets = t[i + 1 : i + 1 + size]
            logits = model(t[None, i : i + len(targets)]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    print(json.dumps({"ids": ids, "logits_last": last, "loss": torch.cat(losses).mean().item() if losses else None}))


main()
