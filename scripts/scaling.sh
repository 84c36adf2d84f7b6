#!/usr/bin/env bash
# How the loss falls with parameters and with tokens: a grid of runs of the modern recipe, which docs/scaling.md is about.
#
#   scripts/scaling.sh CORPUS FOLDER             # CORPUS: stories, or a text file of at least 1 MB of ASCII
#
# Each run has a schedule of its own that ends with its tokens, and is a folder below FOLDER. A run that is finished is not made
# again, and one that was interrupted goes on. Prints one JSON line a run, which is what docs/scaling/NAME.jsonl holds:
# parameters, those but the embeddings, training tokens and how many of them differ, updates, the validation loss over the
# whole split in nats a token, and for the stories the floor of that split.
#
# On a file, some runs see only a part of what others see, again and again, and are judged by the same end: they measure what
# repetition costs. Both corpora together take 25 minutes of one core. Variables: TINYGPT (the program), NAMES (which runs, as
# "64x4-250000"; default: all), ONLY_COLLECT=1 (print the lines of finished runs, and train nothing), PART (last, the default,
# or first: which part; the first is less like the end, which docs/scaling/first/ shows).
set -euo pipefail

corpus=${1:?the corpus: stories, or a text file} folder=${2:?a folder for the runs}
tinygpt=${TINYGPT:-target/release/tinygpt}
config=$(dirname "$0")/../crates/trainer/data/scaling.toml
val=111540 # tokens that are held out of a file: those of shakespeare-small

# CHANNELSxLAYERS-TOKENS, and for repetition -UNIQUE. Heads have 32 channels.
runs=()
grid() { for tokens in "${@:2}"; do runs+=("$1-$tokens"); done; }
grid 32x4 250000 500000 1000000 2000000
grid 64x4 250000 500000 1000000 2000000
grid 128x4 250000 500000 1000000
grid 192x4 250000
if [ "$corpus" != stories ]; then
    grid 32x4 4000000
    grid 64x4 4000000 8000000
    grid 128x4 2000000 4000000
    grid 192x4 500000 1000000 2000000
    grid 256x4 250000
    runs+=(32x4-2000000-125000 64x4-500000-125000 64x4-1000000-125000 64x4-2000000-125000 128x4-500000-125000
        64x4-1000000-250000 64x4-2000000-250000)
fi

mkdir -p "$folder"
for name in "${runs[@]}"; do
    if [ -n "${NAMES:-}" ] && [[ " $NAMES " != *" $name "* ]]; then continue; fi
    IFS=-x read -r channels layers tokens unique <<< "$name"
    run=$folder/$name
    if [ ! -s "$run.json" ]; then
        if [ -n "${ONLY_COLLECT:-}" ]; then continue; fi
        if [ -e "$run" ]; then
            how=(--resume)
        else
            text=$corpus
            how=(--config "$config" --set "model.n_embd=$channels" --set "model.n_layer=$layers"
                --set "model.n_head=$((channels / 32))" --set "train.max_steps=$(((tokens + 512) / 1024))"
                --set "train.eval_every=$(((tokens + 512) / 1024))")
            if [ -n "$unique" ]; then
                text=$folder/${PART:-last}-$unique.txt
                if [ ! -s "$text" ]; then
                    case ${PART:-last} in
                        last) tail -c "$((unique + val))" "$corpus" ;;
                        first) head -c "$unique" "$corpus" && tail -c "$val" "$corpus" ;;
                        *) echo "PART must be last or first" >&2 && exit 2 ;;
                    esac > "$text.new"
                    mv "$text.new" "$text"
                fi
                how+=(--set "data.val_fraction=$(python3 -c "print($val / ($val + $unique))")")
            elif [ "$corpus" = stories ]; then
                # So many that none is seen twice, and a fortieth of them held out.
                how+=(--set data.stories_bytes=4500000 --set data.val_fraction=0.025)
            fi
            how+=(--data "$text")
        fi
        "$tinygpt" train --json --threads 1 --out "$run" "${how[@]}" > "$run.json.new" 2> "$run.log"
        mv "$run.json.new" "$run.json"
    fi
    "$tinygpt" info --json "$run" | python3 -c '
import json, re, sys
info = json.load(sys.stdin)
result, log, name = json.load(open(sys.argv[1])), open(sys.argv[2]).read(), sys.argv[3]
model, report, updates = info["model"], result["report"], result["step"]
unique, held_out = map(int, re.search(r"(\d+) training tokens, (\d+) validation tokens", log).groups())
print(json.dumps({
    "run": name, "n_layer": model["n_layer"], "n_embd": model["n_embd"], "parameters": info["parameters"],
    "parameters_without_embeddings": info["parameters"] - info["vocab_size"] * model["n_embd"],
    "tokens": 1024 * updates, "unique_tokens": unique, "updates": updates, "val_tokens": held_out,
    "loss": round(report["loss"], 6), "floor": report["floor"] and round(report["floor"], 6),
}))' "$run.json" "$run.log" "$name"
done
