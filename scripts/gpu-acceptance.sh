#!/usr/bin/env bash
# Everything that needs a GPU, in under eight minutes: is what the device computes right, how fast is it, how much memory
# does it take, and how does it compare with the CPU and with PyTorch on the same device?
#
#   gpu-acceptance.sh [--device D] [--out DIR] [--binary FILE] [--seconds N]
#                                                                the run; D is cuda:0, DIR acceptance-out, N 480
#   gpu-acceptance.sh --rehearse [--out DIR] [--binary FILE]     the same steps, short, with the CPU as the device
#   gpu-acceptance.sh --pack DIR [--binary FILE]                 all that the run needs, in a folder to copy to the machine
#
# The machine with the GPU needs bash 4 and GNU's coreutils, no network and no Rust; PyTorch is measured where python3 (or
# $PYTHON) has it. DIR gets acceptance.json, acceptance.md and in steps/ what each step printed. Each step is in both, with its
# result or the reason why it was not made. All of it is in DIR.tgz too, to send back. The exit code is 1 if any failed, or
# there was no time for it.
#
# N of cuda:N counts the GPUs as nvidia-smi does, or, where CUDA_VISIBLE_DEVICES is set, those that it names.
set -euo pipefail
if ((BASH_VERSINFO[0] < 4)) || ! timeout --version >/dev/null 2>&1; then
    echo "gpu-acceptance.sh: needs bash 4 and GNU's coreutils" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
# In the repository the program is where check-cuda.sh puts it; in a packed folder it lies beside this script.
binary=$here/tinygpt
[ -e "$binary" ] || binary=$here/../target/cuda/release/tinygpt
device=cuda:0 out=acceptance-out pack='' rehearse='' seconds=''

fail() { printf 'gpu-acceptance.sh: %s\n' "$*" >&2; exit 2; }

while (($#)); do
    case $1 in
        --device | --out | --binary | --pack | --seconds) [ $# -ge 2 ] || fail "$1 needs a value" ;;&
        --device) device=$2; shift ;;
        --out) out=$2; shift ;;
        --binary) binary=$2; shift ;;
        --pack) pack=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --rehearse) rehearse=yes device=cpu ;;
        --help | -h) sed -n '2,17s/^# \{0,1\}//p' "$0"; exit ;;
        *) fail "unknown argument $1; the head of this file lists them" ;;
    esac
    shift
done
[[ ${seconds:-1} =~ ^[1-9][0-9]{0,3}$ ]] || fail "--seconds $seconds: must be a number of seconds"
case $device in
    cpu | cuda | cuda:[0-9] | metal) ;;
    *) fail "--device $device: must be cuda, cuda:N, metal or cpu" ;;
esac
[ -f "$binary" ] || fail "no program at $binary; scripts/check-cuda.sh builds it"
# Not every way to copy a file keeps its mode.
[ -x "$binary" ] || chmod +x "$binary" 2>/dev/null || fail "$binary is not executable: chmod +x $binary"
binary=$(realpath "$binary")

# The C library that the program needs at least, and the one that is here.
needed_glibc=$(grep -aoE 'GLIBC_2\.[0-9]+' "$binary" | sort -uV | tail -n 1 | cut -d _ -f 2)
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2 || true)
[ -z "$glibc" ] || [ "$(printf '%s\n' "$needed_glibc" "$glibc" | sort -V | tail -n 1)" = "$glibc" ] ||
    fail "$binary needs glibc $needed_glibc, and this machine has $glibc: build it on an older system"

if [ -n "$pack" ]; then
    "$binary" devices --json | grep -q '"name":"cuda","compiled":true' ||
        fail "$binary was built without CUDA; scripts/check-cuda.sh builds one with it"
    mkdir -p "$pack"
    # Recipes are in the program.
    cp "$here/gpu-acceptance.sh" "$here/bench_pytorch.py" "$pack"
    # Under the name that the script looks for there.
    cp "$binary" "$pack/tinygpt"
    size=$(du -sm "$pack" | cut -f 1)
    [ "$size" -le 60 ] || fail "$pack has $size MiB, and 60 is the most"
    echo "packed $size MiB in $pack; on the machine with the GPU, which needs glibc $needed_glibc or newer and a driver of" \
        "series 580 or newer: bash $(basename "$pack")/gpu-acceptance.sh"
    exit
fi

# All steps see one GPU, which is cuda:0 then, so that the program, PyTorch and nvidia-smi mean the same one.
asked=$device gpu=''
if [[ $device == cuda* ]]; then
    number=${device#cuda} number=${number#:} number=${number:-0}
    gpu=$number
    if [ -n "${CUDA_VISIBLE_DEVICES-}" ]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        gpu=${visible[number]-}
        [ -n "$gpu" ] || fail "--device $device: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES has no number $number"
    fi
    export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=$gpu
    device=cuda:0
fi
mkdir -p "$out"
out=$(realpath "$out")
# What each step printed; nothing of an earlier run is to be taken for this one's, and nothing else is to be lost.
printed=$out/steps
mkdir -p "$printed"
rm -f "$printed"/*.{stdout,log} "$out"/acceptance.{json,md} "$out.tgz"
# What the driver compiles for the card: the folder that it would take in the home may not be there, or not be writable.
export CUDA_CACHE_PATH=$out/jit-cache
work=$(mktemp -d)
poller=''
trap '[ -z "$poller" ] || kill "$poller" 2>/dev/null || true; rm -rf "$work"' EXIT
# The step in progress gets the signal too, since `timeout` stays in the foreground.
trap 'exit 130' INT
export TINYGPT_CACHE=$work/cache
python=${PYTHON:-python3}
[ -z "$rehearse" ] || : "${seconds:=1800}"
deadline=$((SECONDS + ${seconds:-480}))

# The libraries of CUDA where the system does not find them: a toolkit's, or those that came with PyTorch.
for folder in /usr/local/cuda-13*/lib64 /usr/local/cuda/lib64 \
    $("$python" -c 'import sys; [print(p + "/nvidia/*/lib") for p in sys.path if p]' 2>/dev/null || true); do
    if compgen -G "$folder/libcu*.so.*" >/dev/null; then
        export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
    fi
done

# ---- steps ----

failed=0
declare -A milliseconds # of a step, where it has any

# quoted TEXT: as a string of JSON.
quoted() { printf '"%s"' "$(tr -d '\000-\037' <<<"$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# number KEY FILE: the first number of that name in a file of JSON.
number() { grep -oE "\"$1\": ?-?[0-9.]+(e-?[0-9]+)?" "$2" 2>/dev/null | head -n 1 | cut -d : -f 2 || true; }

# record NAME STATUS NOTE MS TOKENS_PER_S MEMORY TENSORS SECONDS: a step's line in both tables; what it printed is its result.
record() {
    local name=$1 status=$2 note=$3 result
    result=$(tail -n 1 "$printed/$name.stdout" 2>/dev/null | grep '^{' || echo null)
    printf '{"step":"%s","status":"%s","note":%s,"seconds":%s,"device_memory_mib":%s,"tensor_memory_mib":%s,"result":%s}\n' \
        "$name" "$status" "$(quoted "$note")" "${8:-0}" "${6:-null}" "${7:-null}" "$result" >>"$work/steps.json"
    printf '| %s | %s | %s | %s | %s | %s | %s | %s |\n' \
        "$name" "$status" "${4:--}" "${5:--}" "${6:--}" "${7:--}" "${8:--}" "$note" | tee -a "$work/table.md"
    [ "$status" != FAILED ] || failed=$((failed + 1))
}

skip() { record "$1" skipped "$2"; }

# memory NAME: notes what the GPU holds, until it is killed.
memory() {
    exec nvidia-smi --id="$gpu" --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$work/$1.memory"
}

# The seconds of a step at most. A rehearsal may be on a machine that has other work.
longest=120
[ -z "$rehearse" ] || longest=600

# step NAME COMMAND...: runs it, for that long and until the deadline at most, and records it. If it fails the last line
# that it wrote to standard error is the note.
step() {
    local name=$1 code=0 start=$SECONDS left=$((deadline - SECONDS)) held='' note='' ms rate tensors
    shift
    poller=''
    if ((left <= 0)); then
        record "$name" FAILED "no time was left"
        return
    fi
    if [[ $device == cuda* ]] && command -v nvidia-smi >/dev/null; then
        : >"$work/$name.memory"
        memory "$name" 2>/dev/null &
        poller=$!
    fi
    timeout --foreground -k 10 $((left < longest ? left : longest)) "$@" >"$printed/$name.stdout" 2>"$printed/$name.log" || code=$?
    if [ -n "$poller" ]; then
        kill "$poller" 2>/dev/null || true
        wait "$poller" 2>/dev/null || true
        poller=''
        held=$(sort -n "$work/$name.memory" | tail -n 1 | tr -dc 0-9)
    fi
    ms=$(number median_ms "$printed/$name.stdout") rate=$(number tokens_per_s "$printed/$name.stdout")
    tensors=$(number device_peak_memory_mib "$printed/$name.stdout")
    milliseconds[$name]=$ms
    if [ "$code" = 0 ] && [[ $name != same-* && ! -s $printed/$name.stdout ]]; then
        code=1
        echo "it printed nothing" >>"$printed/$name.log"
    fi
    if [ "$code" = 0 ]; then
        record "$name" passed "$(against "$name")" "${ms:+$(printf %.3f "$ms")}" "${rate:+$(printf %.0f "$rate")}" "$held" \
            "${tensors:+$(printf %.1f "$tensors")}" $((SECONDS - start))
    else
        note=$(tail -n 1 "$printed/$name.log")
        [ "$code" != 124 ] || note="took too long"
        record "$name" FAILED "${note:-exit code $code}" '' '' "$held" '' $((SECONDS - start))
    fi
}

# against NAME: how the time of a step is to those of the step before with `-device` in the place of its last word.
against() {
    local other=${1%-*}-device
    [ -n "${milliseconds[$1]-}" ] && [ "$1" != "$other" ] && [ -n "${milliseconds[$other]-}" ] || return 0
    awk -v a="${milliseconds[$1]}" -v b="${milliseconds[$other]}" 'BEGIN { printf "%.2f times the time of the device", a / b }'
}

# ---- what is checked ----

tiny=(--config tiny --set train.max_steps=40 --set train.decay_steps=40 --set train.eval_every=20 --set data.stories_bytes=200000)
[ -z "$rehearse" ] || tiny+=(--set train.max_steps=4 --set train.decay_steps=4 --set train.eval_every=2 --set data.stories_bytes=40000)
one=$work/one two=$work/two

# What must be the same, or nearly, in the results of two steps. Nothing is not the same as nothing.
same_bytes() { [ -s "$1" ] || { echo "$1 is empty" >&2; return 1; }; cmp "$1" "$2" >&2; }
near_losses() {
    awk -v a="$(number loss "$1")" -v b="$(number loss "$2")" 'BEGIN {
        if (a == "" || b == "" || a > b * (1 + 1e-4) || a < b * (1 - 1e-4)) {
            print "losses " a " and " b > "/dev/stderr"; exit 1 }
        print "{\"device\":" a ",\"cpu\":" b "}" }'
}
# `devices` lists what there is, and does not mind if that is only the CPU.
has_device() {
    local listed
    listed=$("$1" devices --json)
    echo "$listed"
    grep -q "\"device\":\"$2\"" <<<"$listed" || {
        echo "no $2: $(grep -oE "\"name\":\"${2%%:*}\".*" <<<"$listed" |
            grep -oE '"problem":"([^"\\]|\\.)*"' | head -n 1 | cut -d : -f 2- | tr -d '\\')" >&2
        return 1
    }
}
# `timeout` runs programs, not functions.
export -f same_bytes near_losses has_device number

check() {
    local generate=(generate --checkpoint "$one" --prompt Once --seed 42 --top-p 0.9 --num-samples 3 --max-new-tokens 100)
    step devices bash -c 'has_device "$@"' - "$binary" "$device"
    step selftest "$binary" selftest --device "$device" --json
    step train "$binary" train "${tiny[@]}" --device "$device" --out "$one" --json
    step train-again "$binary" train "${tiny[@]}" --device "$device" --out "$two" --json
    step same-weights bash -c 'same_bytes "$@"' - "$one/model.safetensors" "$two/model.safetensors"
    step eval-device "$binary" eval "$one" --device "$device" --json
    step eval-cpu "$binary" eval "$one" --device cpu --json
    step same-loss bash -c 'near_losses "$@"' - "$printed/eval-device.stdout" "$printed/eval-cpu.stdout"
    step text-device "$binary" "${generate[@]}" --device "$device" --json
    step text-cpu "$binary" "${generate[@]}" --device cpu --json
    step same-text bash -c 'same_bytes "$@"' - "$printed/text-device.stdout" "$printed/text-cpu.stdout"
}

# ---- what is measured ----

# pytorch NAME ARGUMENT...: the same work there.
pytorch() {
    local name=$1
    shift
    if [ -z "$no_pytorch" ]; then
        step "$name" "$python" "$here/bench_pytorch.py" --device "${device/#cuda*/cuda}" "$@"
    else
        skip "$name" "$no_pytorch"
    fi
}

measure() {
    local no_pytorch='' bf16='' recipes=(small baby gpt2) models=(small gpt2) updates slow_updates=3 tokens=128
    no_pytorch=$(timeout -k 10 60 "$python" -c '
import sys
try:
    import torch
except ImportError as error:
    sys.exit(print(f"no PyTorch: {error}"))
if sys.argv[1].startswith("cuda") and not torch.cuda.is_available():
    print("PyTorch finds no CUDA device")' "$device" 2>&1) || no_pytorch=${no_pytorch:-"no python3"}
    if [ "$device" = metal ]; then no_pytorch="PyTorch is measured on CUDA and the CPU alone"; fi
    if [ "$device" = cpu ] && grep -q '"bf16":false' "$printed/devices.stdout"; then bf16="this processor has no bf16"; fi
    if [ -n "$rehearse" ]; then
        recipes=(small) models=(small) slow_updates=1 tokens=4
        for name in train-baby train-gpt2 decode-gpt2; do skip $name "not part of a rehearsal"; done
    fi
    local sampling=(bench sampling --quick --json)
    [ -z "$rehearse" ] || sampling+=(--rows 2 --vocab 1000)
    step sampling "$binary" "${sampling[@]}"
    for recipe in "${recipes[@]}"; do
        updates=100
        [ $recipe != gpt2 ] || updates=20
        [ -z "$rehearse" ] || updates=2
        for precision in f32 bf16; do
            local name=train-$recipe-$precision flag=()
            if [ $precision = bf16 ]; then
                flag=(--bf16)
                if [ -n "$bf16" ]; then skip "$name-device" "$bf16"; continue; fi
            fi
            step "$name-device" "$binary" bench train "$recipe" --iters $updates --precision $precision --device "$device" --json
            pytorch "$name-pytorch" train "$recipe" --iters $updates --fused "${flag[@]}"
        done
        [ "$device" = cpu ] || [ $recipe = gpt2 ] || step "train-$recipe-f32-cpu" "$binary" bench train "$recipe" --iters $slow_updates --json
    done
    for model in "${models[@]}"; do
        for weights in f32 bf16; do
            local name=decode-$model-$weights flag=()
            [ $weights = f32 ] || flag=(--bf16)
            step "$name-device" "$binary" bench decode "$model" --tokens $tokens --weights $weights --device "$device" --json
            pytorch "$name-pytorch" decode "$model" --tokens $tokens "${flag[@]}"
        done
        [ "$device" = cpu ] || step "decode-$model-f32-cpu" "$binary" bench decode "$model" --tokens 32 --json
    done
    # Compiling takes most of a minute, so it comes last, where time may be short.
    if [ -n "$rehearse" ]; then
        skip train-gpt2-bf16-compiled "not part of a rehearsal"
    elif ! command -v cc >/dev/null; then
        skip train-gpt2-bf16-compiled "no C compiler, which torch.compile needs"
    else
        pytorch train-gpt2-bf16-compiled train gpt2 --iters 20 --fused --bf16 --compile
    fi
}

# ---- what is written ----

: >"$work/steps.json"
echo "acceptance on $asked${gpu:+ (GPU $gpu of nvidia-smi)}${rehearse:+, a rehearsal}; what each step prints is in $printed"
check
measure

{
    printf '{"work":"acceptance","device":"%s","gpu":%s,"rehearsal":%s,"date":"%s","failed":%s,"steps":[\n' \
        "$asked" "$([ -n "$gpu" ] && quoted "$gpu" || echo null)" "$([ -n "$rehearse" ] && echo true || echo false)" "$(date -u +%FT%TZ)" $failed
    sed '$!s/$/,/' "$work/steps.json"
    echo ']}'
} >"$out/acceptance.json"
{
    echo "# Acceptance on $asked${rehearse:+ (a rehearsal: the figures mean nothing)}"
    printf '\n| step | status | ms | tokens/s | GPU MiB | tensors MiB | seconds | note |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n'
    cat "$work/table.md"
    printf '\n| rule | rows | sampler | device | us a row |\n| --- | --- | --- | --- | --- |\n'
    grep -oE '\{"contender":[^}]*\}' "$printed/sampling.stdout" | sed -E \
        's/.*"contender":"([^"]*)","device":"([^"]*)","rows":([0-9]+),.*"rule":"([^"]*)","us_per_row":([0-9]+\.?[0-9]{0,2}).*/| \4 | \3 | \1 | \2 | \5 |/' || true
} >"$out/acceptance.md"

tar -C "$(dirname "$out")" -czf "$out.tgz" --exclude=jit-cache "$(basename "$out")"
echo "$failed steps failed; the tables are $out/acceptance.md and $out/acceptance.json; all of it, to send back: $out.tgz"
[ $failed = 0 ]
