#!/usr/bin/env python3
"""Writes the GGUF files in tests/fixtures/gguf/, with the Python package of llama.cpp.

    python3 scripts/make_gguf_fixtures.py [OUT_FOLDER]      # default: tests/fixtures/gguf

Random models of transformers, one of each architecture, written as convert_hf_to_gguf.py writes them (its permutation of a
Llama's queries and keys included):
  gpt2-q8_0.gguf    byte-level BPE with a special token; the head has a tensor of its own, as in files of older converters
  llama-f16.gguf    characters, an untied head, grouped heads
  qwen3-bf16.gguf   characters
`expected.json` has, for each, a text, its ids, and the logits of transformers behind it, computed from the rounded weights.

Needs: pip install gguf torch transformers
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

EPS = {"gpt2": 1e-5, "llama": 1e-6, "qwen3": 1e-6}
CONTEXT, C, HEADS, HIDDEN = 12, 32, 4, 64
NORMAL, CONTROL = 1, 3
TYPES = gguf.GGMLQuantizationType


def byte_char(byte):
    """GPT-2's character for a byte."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in printed else chr(256 + sum(b not in printed for b in range(byte)))


def bpe():
    tokens = [byte_char(byte) for byte in range(256)]
    merges = ["l o", "lo w", "Ġ low", "e r", "low er", "Ġ lower"]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<|endoftext|>"]
    ids = {token: id for id, token in enumerate(tokens)}
    text = "low lower é<|endoftext|>"
    row = [ids[t] for t in ["low", "Ġlow", "er", "Ġ", byte_char(0xC3), byte_char(0xA9), "<|endoftext|>"]]
    row[1:3] = [ids["Ġlow"], ids["er"]]  # the merge of "low" and "er" comes too late: "Ġlow" is made first
    return tokens, merges, row, text


def chars():
    alphabet = "\n abcé"
    tokens = ["".join(map(byte_char, char.encode())) for char in alphabet]
    text = "abcé a\n"
    return tokens, ["Ã ©"], [alphabet.index(char) for char in text], text


def permute(rows, heads):
    """LlamaModel.permute of the converter."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def names(architecture, layers):
    """From the names of transformers to those of the file."""
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)


def write(path, architecture, kind, model, vocabulary, kv_heads, special=None):
    tokens, merges, row, text = vocabulary
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("fixture")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(C)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_feed_forward_length(4 * C if architecture == "gpt2" else HIDDEN)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(EPS[architecture])
    else:
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(EPS[architecture])
        writer.add_rope_freq_base(10000.0)
        writer.add_rope_dimension_count(C // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token == special else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    table = names(architecture, 1)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name.startswith("lm_head") and architecture != "gpt2" and model.config.tie_word_embeddings:
            continue
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        new = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if architecture == "llama" and ".attn_q." in new:
            values = permute(values, HEADS)
        if architecture == "llama" and ".attn_k." in new:
            values = permute(values, kv_heads)
        values = np.ascontiguousarray(values)
        stays = values.ndim == 1 or new == "position_embd.weight"
        stored = TYPES.F32 if stays else kind
        data = gguf.quantize(values, stored)
        writer.add_tensor(new, data, raw_dtype=stored)
        # The logits are those of the rounded weights.
        rounded = gguf.dequantize(data, stored).reshape(values.shape)
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            rounded = rounded.T
        if architecture == "llama" and (".attn_q." in new or ".attn_k." in new):
            heads = HEADS if ".attn_q." in new else kv_heads
            rounded = rounded.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0, -1].double().tolist()
    return {"text": text, "ids": row, "logits": logits}


def lively(model):
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            torch.nn.init.uniform_(value, -0.5, 0.5) if name.endswith("bias") else torch.nn.init.uniform_(value, 0.5, 1.5)
        else:
            torch.nn.init.normal_(value, std=0.2)
    return model.eval()


def main():
    out = Path(sys.argv[1] if len(sys.argv) == 2 else "tests/fixtures/gguf")
    out.mkdir(parents=True, exist_ok=True)
    expected = {}
    vocabulary = bpe()
    model = lively(GPT2LMHeadModel(GPT2Config(
        vocab_size=len(vocabulary[0]), n_positions=CONTEXT, n_embd=C, n_layer=1, n_head=HEADS, layer_norm_epsilon=EPS["gpt2"],
        bos_token_id=None, eos_token_id=None,
    )))
    expected["gpt2-q8_0.gguf"] = write(
        out / "gpt2-q8_0.gguf", "gpt2", TYPES.Q8_0, model, vocabulary, HEADS, special="<|endoftext|>")
    vocabulary = chars()
    common = dict(
        vocab_size=len(vocabulary[0]), hidden_size=C, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=HEADS,
        head_dim=C // HEADS, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None,
    )
    model = lively(LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=False)))
    expected["llama-f16.gguf"] = write(out / "llama-f16.gguf", "llama", TYPES.F16, model, vocabulary, 2)
    model = lively(Qwen3ForCausalLM(Qwen3Config(**common, num_key_value_heads=1, tie_word_embeddings=True)))
    expected["qwen3-bf16.gguf"] = write(out / "qwen3-bf16.gguf", "qwen3", TYPES.BF16, model, vocabulary, 1)
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


main()
