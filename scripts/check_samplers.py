"""Holds the sampling rules to llama.cpp and transformers: what they keep of random rows, and with which probabilities.

    python scripts/check_samplers.py PROGRAM [CASES]        # compares `PROGRAM sample` on all its paths, CASES (200) times
    python scripts/check_samplers.py PROGRAM --breakers RUN # compares the breakers of DRY in `PROGRAM generate`; RUN has a byte-level BPE
                                                            # and a network that `PROGRAM export` writes as GGUF
    python scripts/check_samplers.py --write FILE           # writes the rows and answers that crates/sampler/tests/judges.rs reads

Rules alone are compared, and chains of rules in the order that params.rs defines. Needs: pip install llama-cpp-python
transformers tokenizers torch numpy
"""

import ctypes
import json
import random
import subprocess
import sys
import tempfile

import numpy as np
import torch
from llama_cpp import llama_cpp as llama
from tokenizers import Tokenizer
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

SEED = 20261126
# The largest difference of a probability that the rounding of f32 explains.
NEAR = 1e-5


def llama_sampler(name, *args):
    return getattr(llama, f"llama_sampler_init_{name}")(*args)


def by_llama(logits, history, rules):
    """Tokens and their logits after llama.cpp's samplers, in our order."""
    chain = []
    if "dry" in rules:
        dry = rules["dry"]
        # Without breakers no vocabulary is asked for.
        lengths = (dry["allowed_length"], dry["last_n"] or 4096)
        sampler = llama_sampler("dry", None, dry["multiplier"], dry["base"], *lengths, None, 0)
        for token in history:
            llama.llama_sampler_accept(sampler, token)
        chain.append(sampler)
    if "top_n_sigma" in rules:
        chain.append(llama_sampler("top_n_sigma", rules["top_n_sigma"]))
    if "dynatemp_range" in rules:
        exponent = rules.get("dynatemp_exponent", 1.0)
        chain.append(llama_sampler("temp_ext", rules.get("temperature", 1.0), rules["dynatemp_range"], exponent))
    elif "temperature" in rules:
        chain.append(llama_sampler("temp", rules["temperature"]))
    if "top_k" in rules:
        chain.append(llama_sampler("top_k", rules["top_k"]))
    if "typical_p" in rules:
        chain.append(llama_sampler("typical", rules["typical_p"], 1))
    if "top_p" in rules:
        chain.append(llama_sampler("top_p", rules["top_p"], 1))
    if "min_p" in rules:
        chain.append(llama_sampler("min_p", rules["min_p"], 1))
    if "xtc_probability" in rules:
        chain.append(llama_sampler("xtc", rules["xtc_probability"], rules.get("xtc_threshold", 0.1), 1, 1))
    if "mirostat_tau" in rules:
        chain.append(llama_sampler("mirostat_v2", 1, rules["mirostat_tau"], rules.get("mirostat_eta", 0.1)))
    array = token_array(logits)
    for sampler in chain:
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
    for sampler in chain:
        llama.llama_sampler_free(sampler)
    return kept_of(array)


def token_array(logits):
    data = (llama.llama_token_data * len(logits))()
    for token, logit in enumerate(logits):
        data[token].id, data[token].logit, data[token].p = token, logit, 0.0
    array = llama.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    array.keep_alive = data
    return array


def kept_of(array):
    entries = [(array.data[n].id, array.data[n].logit) for n in range(array.size)]
    return {token: logit for token, logit in entries if logit > -np.inf}


def by_transformers(logits, history, rules):
    """Tokens and their logits after transformers' processors, in our order."""
    chain = LogitsProcessorList()
    if "no_repeat_ngram_size" in rules:
        chain.append(NoRepeatNGramLogitsProcessor(rules["no_repeat_ngram_size"]))
    if "temperature" in rules:
        chain.append(TemperatureLogitsWarper(rules["temperature"]))
    if "top_k" in rules:
        chain.append(TopKLogitsWarper(rules["top_k"]))
    if "typical_p" in rules:
        chain.append(TypicalLogitsWarper(rules["typical_p"]))
    if "top_p" in rules:
        chain.append(TopPLogitsWarper(rules["top_p"]))
    if "min_p" in rules:
        chain.append(MinPLogitsWarper(rules["min_p"]))
    scores = chain(torch.tensor([history or [0]]), torch.tensor([logits], dtype=torch.float32))[0]
    return {token: float(score) for token, score in enumerate(scores) if score > -np.inf}


def distribution(kept):
    """Probabilities by token, in f64."""
    tokens = sorted(kept)
    logits = np.array([kept[token] for token in tokens], dtype=np.float64)
    weights = np.exp(logits - logits.max())
    return dict(zip(tokens, (weights / weights.sum()).tolist()))


def rounded(rng, low, high):
    """A number that f32 and f64 both have, so that both sides are asked for the same."""
    return float(np.float32(rng.uniform(low, high)))


def random_case(rng, vocab):
    """A row, a history, rules, and who judges them."""
    logits = (rng.normal(size=vocab) * rounded(rng, 0.5, 4)).astype(np.float32)
    history = rng.integers(0, 4, size=int(rng.integers(0, 30))).tolist()
    kinds = [
        ("llama", {"typical_p": rounded(rng, 0.1, 0.99)}),
        ("transformers", {"typical_p": rounded(rng, 0.1, 0.99)}),
        ("llama", {"top_n_sigma": rounded(rng, 0.1, 3)}),
        ("llama", {"xtc_probability": 1.0, "xtc_threshold": rounded(rng, 0.02, 0.3)}),
        ("llama", {"mirostat_tau": rounded(rng, 0.5, 4)}),
        ("llama", {"mirostat_tau": rounded(rng, 0.5, 4), "temperature": rounded(rng, 0.5, 2)}),
        ("llama", {"temperature": rounded(rng, 0.5, 2), "dynatemp_range": rounded(rng, 0.1, 2),
                   "dynatemp_exponent": rounded(rng, 0.5, 2)}),
        ("llama", {"dry": {"multiplier": rounded(rng, 0.1, 3), "base": rounded(rng, 1, 2),
                           "allowed_length": int(rng.integers(1, 4)), "last_n": int(rng.choice([0, 8, 20])),
                           "breakers": []}}),
        ("transformers", {"no_repeat_ngram_size": int(rng.integers(2, 5))}),
        ("llama", {"temperature": rounded(rng, 0.5, 2), "top_k": int(rng.integers(2, vocab)),
                   "typical_p": rounded(rng, 0.3, 0.99), "top_p": rounded(rng, 0.3, 0.99), "min_p": rounded(rng, 0, 0.2),
                   "xtc_probability": 1.0, "xtc_threshold": rounded(rng, 0.02, 0.3)}),
        ("llama", {"temperature": rounded(rng, 0.5, 2), "top_n_sigma": rounded(rng, 0.5, 3), "top_p": rounded(rng, 0.5, 0.99)}),
        ("transformers", {"no_repeat_ngram_size": 3, "temperature": rounded(rng, 0.5, 2),
                          "top_k": int(rng.integers(2, vocab)), "top_p": rounded(rng, 0.3, 0.99)}),
    ]
    judge, rules = kinds[int(rng.integers(len(kinds)))]
    # llama.cpp's entropy of a row with -inf is NaN, or counts the tokens.
    if not {"typical_p", "dynatemp_range"} & rules.keys() and rng.uniform() < 0.3:
        logits[rng.integers(4, vocab, size=vocab // 3)] = -np.inf
    answer = {"llama": by_llama, "transformers": by_transformers}[judge]
    return logits.tolist(), history, rules, judge, distribution(answer(logits.tolist(), history, rules))


def jsonable(logits):
    return [x if np.isfinite(x) else "-inf" for x in logits]


DRY_FLAGS = {"multiplier": "--dry-multiplier", "base": "--dry-base", "allowed_length": "--dry-allowed-length",
             "last_n": "--dry-range"}


def flags_of(rules):
    flags = []
    for name, value in rules.items():
        if name == "dry":
            flags += [text for key, flag in DRY_FLAGS.items() for text in (flag, repr(value[key]))]
        else:
            flags += ["--" + name.replace("_", "-"), repr(value)]
    return flags


def check(program, cases):
    rng = np.random.default_rng(SEED + 1)
    wrong, worst, judged = 0, 0.0, {}
    for case in range(cases):
        vocab = int(rng.choice([8, 60, 1000]))
        logits, history, rules, judge, expected = random_case(rng, vocab)
        for path in ("oracle", "host", "device"):
            command = [program, "sample", "--input", "-", "--json", "--path", path, *flags_of(rules)]
            if history:
                command += ["--history", ",".join(map(str, history))]
            text = json.dumps({"rows": [jsonable(logits)]})
            row = json.loads(subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout)["rows"][0]
            found = dict(zip(row["kept"], row["probs"]))
            if found.keys() != expected.keys():
                wrong += 1
                print(f"case {case}, {path}: {sorted(found.keys() ^ expected.keys())} differ from {judge}: {rules}")
            else:
                worst = max(worst, max(abs(found[token] - p) for token, p in expected.items()))
        judged[judge] = judged.get(judge, 0) + 1
    print(f"{cases} rows on three paths, judged by {judged}: {wrong} differ, largest difference of a probability {worst:.1e}")
    # A threshold within the rounding of f32 may fall to either side.
    sys.exit(1 if wrong > cases // 100 or worst > NEAR else 0)


def check_breakers(program, run):
    """The first greedy token after prompts that repeat themselves, against llama.cpp's penalties by its own vocabulary."""
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.gguf"
        subprocess.run([program, "export", run, "--gguf", file], check=True, capture_output=True)
        params = llama.llama_model_default_params()
        params.vocab_only = True
        model = llama.llama_model_load_from_file(file.encode(), params)
    vocab = llama.llama_model_get_vocab(model)
    words = ["the", "cat", "sat", ":", "a", "\n", "owl", "*", " said", '"yes"', " far", " away", "."]
    sets = [["\n", ":", '"', "*"], [" sat"], ["the cat"], ["at s"], [". "], ["owl", "e"], [" the", ":"], ["xyz"]]
    wrong, moved, count = 0, 0, 200
    for _ in range(count):
        part = " ".join(rng.choice(words) for _ in range(rng.randint(2, 5)))
        prompt = "Once " + " ".join([part] * rng.randint(2, 3)) + " " + part[: rng.randint(0, len(part))]
        breakers = rng.choice(sets)
        command = [program, "generate", "--checkpoint", run, "--prompt", prompt, "--temperature", "0", "--json"]
        command += ["--max-new-tokens", "1", "--logprobs", "1000000", "--dry-multiplier", "20", "--dry-base", "1.5"]
        command += ["--dry-allowed-length", "1"]
        for breaker in breakers:
            command += ["--dry-breaker", breaker.replace("\n", "\\n")]
        sample = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["samples"][0]
        logprobs = {token["id"]: token["logprob"] for token in sample["logprobs"][0]["top"]}
        texts = (ctypes.c_char_p * len(breakers))(*(breaker.encode() for breaker in breakers))
        texts = ctypes.cast(texts, ctypes.POINTER(ctypes.c_char_p))
        sampler = llama_sampler("dry", vocab, 20.0, 1.5, 1, 4096, texts, len(breakers))
        for token in Tokenizer.from_file(f"{run}/tokenizer.json").encode(prompt).ids:
            llama.llama_sampler_accept(sampler, token)
        array = token_array([logprobs[token] for token in range(len(logprobs))])
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        llama.llama_sampler_free(sampler)
        penalised = kept_of(array)
        best = min(penalised, key=lambda token: (-penalised[token], token))
        wrong += best != sample["tokens"][0]
        moved += best != min(logprobs, key=lambda token: (-logprobs[token], token))
    print(f"{count} prompts, of which DRY changes {moved}: {wrong} differ from llama.cpp")
    sys.exit(1 if wrong or not moved else 0)


def mirostat_chain(rng, vocab, tau, eta, steps):
    """Draws by llama.cpp from one row: what it keeps at each step, at which mu, and what it draws."""
    logits = (rng.normal(size=vocab) * 2).astype(np.float32).tolist()
    sampler = llama_sampler("mirostat_v2", 7, tau, eta)
    mu, chain = 2 * tau, []
    for _ in range(steps):
        array = token_array(logits)
        llama.llama_sampler_apply(sampler, ctypes.byref(array))
        drawn = array.data[array.selected].id
        kept = distribution(kept_of(array))
        chain.append({"mu": mu, "kept": sorted(kept), "drawn": drawn})
        mu -= eta * (-np.log2(kept[drawn]) - tau)
    llama.llama_sampler_free(sampler)
    return {"logits": logits, "tau": tau, "eta": eta, "steps": chain}


def write(file):
    rng = np.random.default_rng(SEED)
    cases = []
    for _ in range(48):
        logits, history, rules, judge, expected = random_case(rng, 16)
        probs = [round(p, 8) for p in expected.values()]
        cases.append({"judge": judge, "rules": rules, "logits": jsonable(logits), "history": history,
                      "kept": list(expected), "probs": probs})
    chain = mirostat_chain(rng, 24, 2.5, 0.5, 12)
    with open(file, "w") as out:
        lines = ",\n".join(json.dumps(case) for case in cases)
        out.write(f'{{"cases": [\n{lines}\n],\n"mirostat": {json.dumps(chain)}}}\n')


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--write":
        write(sys.argv[2])
    elif len(sys.argv) == 4 and sys.argv[2] == "--breakers":
        check_breakers(sys.argv[1], sys.argv[3])
    elif len(sys.argv) in (2, 3):
        check(sys.argv[1], int(sys.argv[2]) if len(sys.argv) == 3 else 200)
    else:
        sys.exit(__doc__)
