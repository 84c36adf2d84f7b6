#!/usr/bin/env bash
# The ladder from nanoGPT's recipe to the modern one, a step at a time: docs/recipes.md has its table.
#
#   scripts/ablate.sh CORPUS FOLDER [STEPS ...]      # default: 300 2000
#
# CORPUS is tinyshakespeare (`tinygpt data fetch tinyshakespeare`). Each run is a folder below FOLDER; a run that is finished is
# not made again, and one that was interrupted goes on. Prints the whole-split validation loss of each step over three seeds,
# and the milliseconds that an update took in the run, evaluations included. Variables: TINYGPT (the program), SEEDS (default: 1337 1 2), RUNGS (which, default all).
set -euo pipefail

corpus=${1:?the corpus} folder=${2:?a folder for the runs}
shift 2
steps=("${@:-}")
[ -n "${steps[0]}" ] || steps=(300 2000)
tinygpt=${TINYGPT:-target/release/tinygpt}
read -ra seeds <<< "${SEEDS:-1337 1 2}"

# Each rung adds to those before it. The first is nanoGPT's: its cosine ends with the run.
rungs=(
    "nanogpt:train.warmup_steps=100"
    "rope:model.position=rope"
    "rms:model.norm=rms"
    "qk_norm:model.qk_norm=true"
    "swiglu:model.mlp=swiglu"
    "fan_in:model.init=fan_in"
    "schedule:train.schedule=wsd train.decay_fraction=0.8 train.warmup_steps=20 train.lr=3e-3 train.min_lr=0.0 train.beta2=0.95"
    "muon:train.optimizer=muon train.lr_matrices=0.02 train.lr=1.2e-2"
)

mkdir -p "$folder"
printf '%-10s %6s  %-26s %8s %10s\n' step updates 'loss of each seed' mean 'ms/update'
set=()
for rung in "${rungs[@]}"; do
    name=${rung%%:*}
    for key in ${rung#*:}; do set+=(--set "$key"); done
    if [ -n "${RUNGS:-}" ] && [[ " $RUNGS " != *" $name "* ]]; then continue; fi
    for n in "${steps[@]}"; do
        losses=() times=()
        for seed in "${seeds[@]}"; do
            run=$folder/$name-$n-$seed
            if [ ! -s "$run.json" ]; then
                rate=()
                if [ -e "$run" ]; then
                    rate=(--resume)
                else
                    # A short run of nanoGPT's recipe has its cosine, too.
                    rate=(--config shakespeare-small --data "$corpus" --seed "$seed" "${set[@]}" --set "train.max_steps=$n"
                        --set "train.decay_steps=$n" --set "train.eval_every=$n")
                fi
                "$tinygpt" train --json --out "$run" "${rate[@]}" > "$run.json.new" 2> "$run.log"
                mv "$run.json.new" "$run.json"
            fi
            read -r loss ms < <(python3 -c '
import json, sys
report = json.load(open(sys.argv[1]))
print(report["report"]["loss"], 1e3 * report["seconds"] / report["step"])' "$run.json")
            losses+=("$loss") times+=("$ms")
        done
        python3 -c '
import statistics, sys
name, n, k = sys.argv[1], sys.argv[2], int(sys.argv[3])
losses, times = [[float(x) for x in xs] for xs in (sys.argv[4:4 + k], sys.argv[4 + k:])]
each = ", ".join(f"{x:.4f}" for x in losses)
print(f"{name:<10} {n:>6}  {each:<26} {statistics.mean(losses):8.4f} {statistics.median(times):10.1f}")' \
            "$name" "$n" "${#seeds[@]}" "${losses[@]}" "${times[@]}"
    done
done
