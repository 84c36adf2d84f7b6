#!/usr/bin/env bash
# counts.sh PROGRAM DEVICE: what a token and an update launch and copy on the emulated device in the folder DEVICE, held to
# counts.csv: a higher number is an error, for a lower one the table is to be recorded again.
#
#   counts.sh --record PROGRAM DEVICE   writes counts.csv
#
# A row is what lies between two moments at which the host waits: for a token its read-back, for an update the wait of
# `tinygpt bench train`, which does what training does. Of a few such moments the most frequent difference counts. Numbers of launches do not depend on widths, so the models are narrow, but
# for tokens of the 124M shape.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
record=''
if [ "${1-}" = --record ]; then
    record=yes
    shift
fi
[ $# = 2 ] || { echo "counts.sh: [--record] PROGRAM DEVICE" >&2; exit 2; }
program=$(realpath "$1") device=$(realpath "$2")
[[ -x $program && -e $device/libcuda.so.1 ]] || { echo "counts.sh: no program $1, or no emulated device in $2" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset "${!EMULATED_@}"
export TINYGPT_CACHE=$work/cache
columns=(launches products uploads read_backs device_copies memsets allocations events)

# measure ROW MOMENTS COMMAND...: a line of the table: the most frequent difference between two moments, and the peak of memory in KiB.
measure() {
    local row=$1 moments=$2 marks=$work/$1.marks counts=$work/$1.json
    shift 2
    LD_LIBRARY_PATH=$device EMULATED_MARKS=$marks EMULATED_MARKS_WANTED=$moments EMULATED_COUNTS=$counts EMULATED_STRICT=1 \
        "$program" "$@" --device cuda --threads 1 --json >"$work/$row.log" 2>&1 || { cat "$work/$row.log" >&2; return 1; }
    awk -v wanted="${columns[*]}" '
        NR == 1 { n = split(wanted, name, " "); for (i = 1; i <= NF; i++) place[$i] = i; next }
        NR > 2 {
            line = ""
            for (i = 1; i <= n; i++) line = line "," $place[name[i]] - before[place[name[i]]]
            times[line]++
        }
        { for (i = 1; i <= NF; i++) before[i] = $i }
        END { for (line in times) if (times[line] > most || times[line] == most && line > best) { most = times[line]; best = line }
              # Once may be anything: the start of the program, or its end.
              if (most < 2) { print "counts.sh: no two moments have as much between them" > "/dev/stderr"; exit 1 }
              printf "%s", best }' "$marks" | sed "s/^/$row/" >"$work/$row.csv"
    awk -F '[:,]' '/^"peak_bytes"/ { printf ",%d\n", $2 / 1024 }' "$counts" >>"$work/$row.csv"
}

# update ROW PRECISION MODEL: of a configuration below.
update() {
    local row=$1 precision=$2 model=$3 moments=6
    # Whether the device has the precision is tried first, and read back.
    [ "$precision" = f32 ] || moments=8
    measure "$row" $moments bench train "$work/$model.toml" --precision "$precision" --iters 100
}

# Of each recipe what its launches depend on. Batches are small, and fewer channels are.
cat >"$work/tiny.toml" <<'EOC'
[data]
corpus = "stories"
tokenizer = "bpe"
vocab_size = 1024
[model]
block_size = 64
n_layer = 2
n_head = 3
n_embd = 96
norm = "rms"
position = "rope"
qk_norm = true
mlp = "swiglu"
init = "fan_in"
[train]
optimizer = "muon"
batch_size = 2
max_steps = 10
warmup_steps = 2
lr_matrices = 2e-2
EOC
cat >"$work/baby.toml" <<'EOC'
[data]
corpus = "stories"
tokenizer = "char"
[model]
block_size = 64
n_layer = 6
n_head = 6
n_embd = 96
dropout = 0.2
bias = false
[train]
batch_size = 2
max_steps = 10
warmup_steps = 2
EOC
# The shape of 124M with two layers: rows enough that activations, not parameters, take most of the memory.
cat >"$work/gpt2.toml" <<'EOC'
[data]
corpus = "stories"
tokenizer = "bpe"
vocab_size = 4096
[model]
block_size = 256
n_layer = 2
n_head = 12
n_embd = 96
dropout = 0.0
bias = false
[train]
batch_size = 4
max_steps = 10
warmup_steps = 2
EOC

# A run to decode, of one update.
"$program" train --config "$work/tiny.toml" --set data.stories_bytes=60000 --set train.max_steps=1 --set train.decay_steps=2 \
    --set train.eval_batches=1 --device cpu --out "$work/run" >"$work/run.log" 2>&1 || { cat "$work/run.log" >&2; exit 1; }

rows=() pids=()
# start ROW COMMAND...: in the background, as many as there are processors.
start() {
    local running
    running=$(jobs -rp | wc -l)
    if [ "$running" -ge "$(nproc)" ]; then wait -n || true; fi
    rows+=("$2")
    "$@" &
    pids+=($!)
}
for weights in f32 bf16; do
    start measure "token-tiny-$weights" 8 bench decode "$work/run" --tokens 3 --weights $weights
    start measure "token-baby-$weights" 8 bench decode baby --tokens 3 --weights $weights
    start measure "token-gpt2-$weights" 8 bench decode gpt2 --tokens 3 --weights $weights
done
for precision in f32 bf16 f16; do
    for model in tiny baby gpt2; do start update "update-$model-$precision" $precision $model; done
done
for pid in "${pids[@]}"; do wait "$pid" || { echo "counts.sh: a measurement failed" >&2; exit 1; }; done

{
    printf 'what,%s,peak_kib\n' "$(IFS=,; echo "${columns[*]}")"
    for row in "${rows[@]}"; do cat "$work/$row.csv"; done | sort
} >"$work/counts.csv"
if [ -n "$record" ]; then
    cp "$work/counts.csv" "$here/counts.csv"
    echo "recorded $here/counts.csv"
    exit
fi
awk -F , -v recorded="$here/counts.csv" '
    FILENAME == recorded { if (FNR > 1) { for (i = 2; i <= NF; i++) bound[$1, i] = $i; left[$1] = 1 } next }
    FNR == 1 { for (i = 2; i <= NF; i++) name[i] = $i; next }
    {
        if (!($1 in left)) { print "counts.sh: " $1 " is not in the table"; bad = 1 }
        delete left[$1]
        for (i = 2; i <= NF; i++) {
            if ($i > bound[$1, i]) { print "counts.sh: " $1 ": " $i " " name[i] ", and the table has " bound[$1, i]; bad = 1 }
            if ($i < bound[$1, i]) { print "counts.sh: " $1 ": " $i " " name[i] " instead of " bound[$1, i]; lower = 1 }
        }
    }
    END {
        for (row in left) { print "counts.sh: " row " was not measured"; bad = 1 }
        if (lower) print "counts.sh: the table can be lowered: scripts/check-cuda.sh --record"
        exit bad
    }' "$here/counts.csv" "$work/counts.csv"
echo "counts of $((${#rows[@]})) rows are at most those of counts.csv"
