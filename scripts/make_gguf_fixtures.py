#!/usr/bin/env python3
"""Writes the GGUF files in tests/fixtures/gguf/, with the Python package of llama.cpp.

    python3 scripts/make_gguf_fixtures.py [OUT_FOLDER]      # default: tests/fixtures/gguf

Random models of transformers, one of each architecture, written as convert_hf_to_gguf.py writes them (its permutation of a
Llama's queries and keys included):
  gpt2-q8_0.gguf    byte-level BPE with a special token; the head has a tensor of its own, as in files of older converters
  llama-f16.gguf    characters, an untied head, grouped heads
  llama3-f16.gguf   the same with the angles of Llama 3, one pair of a head interpolated
  qwen3-bf16.gguf   characters
  qwen3-q4_0.gguf   the same model
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

CONTEXT, C, HEADS, HIDDEN = 12, 32, 4, 64
NORMAL, CONTROL = 1, 3
TYPES = gguf.GGMLQuantizationType
# Of heads with four pairs the first stays, the second is interpolated, and the others are divided by the factor.
LLAMA3 = dict(
    rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=40)


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
    # " lower" is two tokens: the space is merged to "low" before "er" is.
    words = ["low", "Ġlow", "er", "Ġ", byte_char(0xC3), byte_char(0xA9), "<|endoftext|>"]
    row = [tokens.index(word) for word in words]
    return tokens, merges, row, text


def chars():
    alphabet = "\n abcé"
    tokens = ["".join(map(byte_char, char.encode())) for char in alphabet]
    text = "abcé a\n"
    return tokens, ["Ã ©"], [alphabet.index(char) for char in text], text


def permute(rows, heads):
    """LlamaModel.permute of the converter."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def rope_factors(config):
    """LlamaModel.generate_extra_tensors of the converter."""
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    factors = []
    for channel in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (channel / config.head_dim)
        smooth = (context / wavelength - low) / (high - low)
        scaled = 1 / ((1 - smooth) / factor + smooth)
        factors.append(1 if wavelength < context / high else factor if wavelength > context / low else scaled)
    return np.array(factors, dtype=np.float32)


def write(path, architecture, kind, model, tokens, merges, special=None):
    """Writes a model of transformers, and leaves the rounded weights in it."""
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("fixture")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    if architecture == "gpt2":
        kv_heads = heads
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        kv_heads = config.num_key_value_heads
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token == special else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name.startswith("lm_head") and architecture != "gpt2" and model.config.tie_word_embeddings:
            continue
        if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            values = values.T
        new = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if architecture == "llama" and ".attn_q." in new:
            values = permute(values, heads)
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
            n = heads if ".attn_q." in new else kv_heads
            rounded = rounded.reshape(n, values.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))
    factors = rope_factors(config) if architecture == "llama" else None
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def expected(model, text, row):
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
    bpe_tokens, merges, bpe_row, bpe_text = bpe()
    tokens, char_merges, row, text = chars()
    common = dict(
        vocab_size=len(tokens), hidden_size=C, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=HEADS,
        head_dim=C // HEADS, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=None,
    )
    gpt2 = lively(GPT2LMHeadModel(GPT2Config(
        vocab_size=len(bpe_tokens), n_positions=CONTEXT, n_embd=C, n_layer=1, n_head=HEADS, bos_token_id=None, eos_token_id=None,
    )))
    llama = lively(LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=False)))
    llama3 = lively(LlamaForCausalLM(LlamaConfig(
        **common | dict(max_position_embeddings=64), num_key_value_heads=2, tie_word_embeddings=False, rope_parameters=LLAMA3)))
    qwen3 = lively(Qwen3ForCausalLM(Qwen3Config(**common, num_key_value_heads=1, tie_word_embeddings=True)))
    small = lively(Qwen3ForCausalLM(qwen3.config))
    write(out / "gpt2-q8_0.gguf", "gpt2", TYPES.Q8_0, gpt2, bpe_tokens, merges, special="<|endoftext|>")
    write(out / "llama-f16.gguf", "llama", TYPES.F16, llama, tokens, char_merges)
    write(out / "llama3-f16.gguf", "llama", TYPES.F16, llama3, tokens, char_merges)
    write(out / "qwen3-bf16.gguf", "qwen3", TYPES.BF16, qwen3, tokens, char_merges)
    write(out / "qwen3-q4_0.gguf", "qwen3", TYPES.Q4_0, small, tokens, char_merges)
    answers = {
        "gpt2-q8_0.gguf": expected(gpt2, bpe_text, bpe_row),
        "llama-f16.gguf": expected(llama, text, row),
        "llama3-f16.gguf": expected(llama3, text, row),
        "qwen3-bf16.gguf": expected(qwen3, text, row),
        "qwen3-q4_0.gguf": expected(small, text, row),
    }
    (out / "expected.json").write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
