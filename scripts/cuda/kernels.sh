#!/usr/bin/env bash
# kernels.sh [--check | --usage]: the project's own CUDA kernels, crates/*/kernels/*.cu, compiled to the PTX that is committed beside them.
#
#   (no flag)  compiles each source whose PTX is of another source, with CUDA's compiler, which it downloads from PyPI (270 MB on
#              disk) into target/cuda-toolkit if it is not there.
#   --check    says whether each PTX is that of its source; needs no compiler.
#   --usage    prints registers, shared memory and spills of each kernel for compute capability 8.0 and 9.0, by ptxas.
#
# A PTX begins with a hash of its source and of the headers beside it. It is for compute capability 8.0, which every later card
# compiles for itself when it loads the program.
set -euo pipefail
cd "$(dirname "$0")/../.."
toolkit_version=13.0.2

fail() { printf 'kernels.sh: %s\n' "$*" >&2; exit 1; }

# hash_of SOURCE: of the source with the headers of its folder.
hash_of() {
    local folder
    folder=$(dirname "$1")
    { cat "$1"; find "$folder" -name '*.cuh' | LC_ALL=C sort | xargs -r cat; } | sha256sum | cut -d' ' -f1
}

stamp() { printf '// sha256 of the source and its headers: %s\n' "$(hash_of "$1")"; }

compiler() {
    toolkit=$PWD/target/cuda-toolkit
    nvcc=$toolkit/nvidia/cu13/bin/nvcc
    [ -x "$nvcc" ] && return
    python3 -m pip --version >/dev/null 2>&1 || fail "needs python3 with pip, to download CUDA's compiler from PyPI"
    python3 -m pip install --quiet --no-compile --root-user-action=ignore --target "$toolkit" \
        "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==$toolkit_version" || fail "CUDA's compiler could not be downloaded"
}

sources=$(find crates -path '*/kernels/*.cu' | LC_ALL=C sort)
case ${1-} in
    --check)
        for source in $sources; do
            ptx=${source%.cu}.ptx
            [ -f "$ptx" ] || fail "$ptx is missing: run scripts/cuda/kernels.sh"
            [ "$(head -1 "$ptx")" = "$(stamp "$source")" ] || fail "$ptx is not that of $source: run scripts/cuda/kernels.sh"
        done
        ;;
    --usage)
        compiler
        for source in $sources; do
            for capability in 80 90; do
                "$(dirname "$nvcc")/ptxas" -v -arch="sm_$capability" "${source%.cu}.ptx" -o /dev/null 2>&1 |
                    sed -n "s/.*Compiling entry function '\(.*\)' for.*/\1/p; s/.*\(Used .*\)/\1/p; s/.* \([0-9]* bytes spill stores.*\)/\1/p" |
                    paste - - - | sed "s/^/sm_$capability /"
            done
        done
        ;;
    '')
        compiler
        for source in $sources; do
            ptx=${source%.cu}.ptx
            [ "$(head -1 "$ptx" 2>/dev/null)" != "$(stamp "$source")" ] || continue
            "$nvcc" -ptx -O3 -std=c++17 -arch=compute_80 "$source" -o "$ptx.new"
            # Comments of the compiler name its build and not the kernel.
            { stamp "$source"; grep -v '^//' "$ptx.new"; } >"$ptx"
            rm "$ptx.new"
            echo "$ptx"
        done
        ;;
    *) printf 'kernels.sh: unknown argument %s; the arguments are --check and --usage\n' "$1" >&2; exit 2 ;;
esac
