#!/usr/bin/env bash
# run.sh PROGRAM DEVICE: what the CUDA build of the program has to do right on the emulated device in the folder DEVICE: train,
# resume, generate, draw, pass its selftest in each order of threads, with each guard and without the project's kernels, go through the acceptance run, and launch
# no more than counts.csv says. What the device complains of is an error.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || { echo "run.sh: PROGRAM DEVICE" >&2; exit 2; }
program=$(realpath "$1") device=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset "${!EMULATED_@}" CUDA_VISIBLE_DEVICES
export TINYGPT_CACHE=$work/cache
begun=$SECONDS

fail() { printf 'run.sh: %s\n' "$*" >&2; exit 1; }
passed() { printf 'emulated device, %3d s: %s\n' $((SECONDS - begun)) "$*"; }

# on_device COMMAND...
on_device() { LD_LIBRARY_PATH=$device EMULATED_STRICT=1 "$@"; }
# quietly LOG COMMAND...: what it printed is shown if it fails.
quietly() {
    local log=$work/$1.log
    shift
    "$@" >"$log" 2>&1 || { cat "$log" >&2; fail "failed: $*"; }
}

# Each part in the background, as many as there are processors, the longest first.
acceptance() {
    quietly acceptance on_device "$here/../../gpu-acceptance.sh" --rehearse --device cuda --binary "$program" --out "$work/acceptance"
    passed "the acceptance run, rehearsed, with the selftest"
}
selftest() {
    quietly "selftest-$1" on_device env EMULATED_ORDER="$1" EMULATED_GUARD="$2" "$program" selftest --device cuda
    passed "selftest, threads in $1 order, guards at the $2"
}
without_kernels() {
    quietly without-kernels on_device env TINYGPT_KERNELS=off "$program" selftest --device cuda
    passed "selftest, of tensor operations alone"
}
counts() {
    quietly counts "$here/counts.sh" "$program" "$device"
    cat "$work/counts.log"
    passed "counts"
}

# Training resumes with the same bytes; what was trained says the same on both devices.
training() {
    local small=(--config tiny --set data.stories_bytes=20000 --set train.batch_size=2 --set model.block_size=64
        --set train.decay_steps=4 --set train.eval_batches=2)
    local run=("$program" --threads 1)
    on_device "$program" devices --json | grep -q '"present":true,.*emulated device' || fail "devices does not say that there is one"
    quietly whole on_device "${run[@]}" train "${small[@]}" --set train.max_steps=4 --device cuda --out "$work/whole"
    quietly part on_device "${run[@]}" train "${small[@]}" --set train.max_steps=2 --device cuda --out "$work/parts"
    quietly resume on_device "${run[@]}" train --resume --set train.max_steps=4 --device cuda --out "$work/parts"
    cmp "$work/whole/model.safetensors" "$work/parts/model.safetensors" || fail "a resumed run has other weights"
    passed "training and resuming"
    local rules on_cpu
    for rules in "--temperature 0" "--top-k 20" "--top-p 0.9" "--top-k 50 --top-p 0.8 --repetition-penalty 1.2" "--min-p 0.1 --window half"; do
        # shellcheck disable=SC2206 # rules are words
        local generate=(generate --checkpoint "$work/whole" --prompt Once --seed 7 --num-samples 2 --max-new-tokens 30 $rules)
        on_cpu=$("${run[@]}" "${generate[@]}" --device cpu 2>/dev/null)
        [ "$(on_device "${run[@]}" "${generate[@]}" --device cuda 2>"$work/generate.log")" = "$on_cpu" ] ||
            fail "another text than on the CPU: $rules: $(cat "$work/generate.log")"
    done
    echo '{"rows": [[1, 2, 0.5, 2, -1, "-inf"], [0, 0, 3, 1, 1, 1]]}' >"$work/logits.json"
    local sample=(sample --input "$work/logits.json" --top-k 4 --top-p 0.9 --num-samples 20 --seed 3)
    on_cpu=$("${run[@]}" "${sample[@]}" --path device --device cpu)
    [ "$(on_device "${run[@]}" "${sample[@]}" --path device --device cuda)" = "$on_cpu" ] || fail "other draws than on the CPU"
    passed "texts and draws of the CPU"
}

parts=(acceptance "selftest random start" "selftest reverse end" without_kernels counts training)
pids=()
for part in "${parts[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
    # shellcheck disable=SC2086 # a name and its arguments
    $part &
    pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
[ $failed = 0 ] || fail "a part failed"
