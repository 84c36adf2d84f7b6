#!/usr/bin/env bash
# check-cuda.sh [--fast | --run | --record]: builds the program for CUDA on a machine that needs neither a GPU nor CUDA, and checks that what
# comes out starts there, says what is missing, and trains on the CPU.
#
#   (no flag)  compiles the kernels and gives a release program to copy to a machine with a GPU, in
#              target/cuda/release/tinygpt. Downloads CUDA's compiler from PyPI (270 MB on disk) into target/cuda-toolkit.
#              For GPUs of compute capability 8.0 (A100) and all later ones; CUDA_COMPUTE_CAP=90 makes a program for H100
#              and H200 alone.
#   --fast     checks and links the Rust code alone, with an empty file in the place of each kernel, in target/cuda-fast:
#              a few minutes instead of a quarter of an hour, and nothing that may ever run on a GPU. Dependencies that do
#              not know of CUDA are those that `cargo test` has built (with Cargo 1.91 or newer).
#   --run      as --fast, and then runs the program on the emulated device, with all kernels (scripts/cuda/emulated).
#   --record   as --fast, and then records what a token and an update launch there, in scripts/cuda/emulated/counts.csv.
#
# Needs Rust, a C and C++ compiler, x86-64 Linux, and without --fast python3 with pip.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

then=${1-}

fail() { printf 'check-cuda.sh: %s\n' "$*" >&2; exit 1; }
usage() { printf 'check-cuda.sh: %s; the arguments are --fast, --run and --record\n' "$*" >&2; exit 2; }

[ $# -le 1 ] || usage "too many arguments"
case ${1-} in
    --fast | --run | --record) tier=fast ;;
    '') tier=full ;;
    *) usage "unknown argument $1" ;;
esac
[ "$(uname -sm)" = "Linux x86_64" ] || fail "needs Linux on x86-64, and this is $(uname -sm)"
for tool in cargo cc c++ ar; do command -v $tool >/dev/null || fail "needs $tool on the path"; done

# A driver of the 580 series knows CUDA 13.0, and refuses kernels of a newer compiler.
toolkit_version=13.0.2
export CUDARC_CUDA_VERSION=13000
# Kernels are in the program as PTX for this capability, which a driver compiles for the card that it has: any later one, unless
# it is 90 or more, which candle's build makes 90a, 100a and so on, and their PTX loads on no other.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
[ "$CUDA_COMPUTE_CAP" -ge 80 ] || fail "CUDA_COMPUTE_CAP=$CUDA_COMPUTE_CAP: candle has its kernels for bf16 from 80 on alone"
CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
export CUDAFORGE_THREADS

if [ $tier = fast ]; then
    export CARGO_TARGET_DIR=$root/target/cuda-fast
    libraries=$CARGO_TARGET_DIR/libraries
    mkdir -p "$libraries" "$CARGO_TARGET_DIR/bin"
    cp scripts/cuda/fake-nvcc "$CARGO_TARGET_DIR/bin/nvcc"
    ar rcs "$libraries/libcudart.a"
    export PATH=$CARGO_TARGET_DIR/bin:$PATH NVCC=$CARGO_TARGET_DIR/bin/nvcc LIBRARY_PATH=$libraries
    export CARGO_BUILD_BUILD_DIR=$root/target RUSTC_WORKSPACE_WRAPPER=$root/scripts/rustc/cuda-fast
    # What is built for CUDA alone need not be fast, and optimising it takes most of the time.
    profile=(--profile dev) folder=debug
    for crate in candle-core candle-kernels candle-nn candle-transformers cudarc; do
        profile+=(--config "profile.dev.package.$crate.opt-level=0")
    done
else
    export CARGO_TARGET_DIR=$root/target/cuda
    libraries=$CARGO_TARGET_DIR/libraries toolkit=$root/target/cuda-toolkit
    CUDA_HOME=$toolkit/nvidia/cu13
    if [ ! -x "$CUDA_HOME/bin/nvcc" ]; then
        python3 -m pip --version >/dev/null 2>&1 || fail "needs python3 with pip, to download CUDA's compiler from PyPI"
        python3 -m pip install --quiet --no-compile --root-user-action=ignore --target "$toolkit" \
            "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==$toolkit_version" || fail "CUDA's compiler could not be downloaded"
    fi
    mkdir -p "$libraries"
    # Linked in: the program then needs no libcudart where it runs.
    ln -sf "$CUDA_HOME/lib/libcudart_static.a" "$libraries/libcudart.a"
    export CUDA_HOME PATH=$CUDA_HOME/bin:$PATH NVCC=$CUDA_HOME/bin/nvcc LIBRARY_PATH=$libraries
    # With candle's sampler, which the acceptance run compares with.
    profile=(--profile release --features tinygpt-cli/bench-candle) folder=release
fi

# The PTX that becomes part of the program is that of the kernels' sources.
scripts/cuda/kernels.sh --check
scripts/cuda/shims.sh "$libraries"
scripts/cuda/check-shims.sh "$libraries"
# Cargo does not see it when these libraries change: link again, by deleting the program under all its names.
program=$CARGO_TARGET_DIR/$folder/tinygpt
[ ! -e "$program" ] || find "$root/target" -samefile "$program" -delete
start=$SECONDS
cargo build --locked "${profile[@]}" --package tinygpt-cli --features cuda
tinygpt=$program
echo "built $tinygpt in $((SECONDS - start)) s: $(($(stat -c %s "$tinygpt") / 1000000)) MB"

libraries=$(ldd "$tinygpt")
! grep -E 'libcu|libnv' <<<"$libraries" || fail "the program does not start without the libraries above"

# What follows holds where there is no GPU to be found, on any machine.
export CUDA_VISIBLE_DEVICES=-1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TINYGPT_CACHE=$work/cache
train=(train --config tiny --set train.max_steps=1 --set train.decay_steps=2 --set data.stories_bytes=20000)

"$tinygpt" devices
"$tinygpt" devices --json | grep -q '"name":"cuda","compiled":true,"present":false' ||
    fail "devices does not say that CUDA is compiled in and absent"
"$tinygpt" "${train[@]}" --out "$work/auto" >/dev/null 2>"$work/auto.log" || fail "does not train: $(cat "$work/auto.log")"
grep -q '^device: cpu (CUDA: ' "$work/auto.log" || fail "does not say why it fell back to the CPU"
[ -s "$work/auto/model.safetensors" ] || fail "the training on the CPU left no weights"
code=0
"$tinygpt" "${train[@]}" --device cuda --out "$work/named" >/dev/null 2>"$work/named.log" || code=$?
[ $code = 2 ] || fail "--device cuda without a GPU ends with exit code $code instead of 2"
grep -q '^error: --device cuda:0: ' "$work/named.log" || fail "--device cuda does not say what is wrong"
! grep -q panicked "$work"/*.log || fail "a panic reached the user"
[ ! -e "$work/named" ] || fail "--device cuda without a GPU left a run behind"
echo "CUDA build checked ($tier); no GPU was used"

emulated=$root/target/emulated
case $then in
    --run)
        scripts/cuda/emulated/build.sh "$emulated"
        scripts/cuda/emulated/check.sh
        scripts/cuda/emulated/run.sh "$tinygpt" "$emulated"
        ;;
    --record)
        scripts/cuda/emulated/build.sh "$emulated"
        scripts/cuda/emulated/counts.sh --record "$tinygpt" "$emulated"
        ;;
esac
