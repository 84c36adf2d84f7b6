#!/usr/bin/env bash
# build.sh [--without-candle] DIR [SOURCE.cu ...]: the emulated device in DIR, for LD_LIBRARY_PATH: stand-ins of libcuda, libcublas and libcurand, and
# the kernels that they run. These are candle's and those of the sources given; without any, those of the project,
# crates/*/kernels/*.cu. README.md has more.
#
#   EMULATED_CXXFLAGS   further flags for kernels, such as -fsanitize=undefined
#
# Needs g++ on x86-64 Linux with AVX2, and candle-kernels in cargo's registry (cargo fetch).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)

fail() { printf 'build.sh: %s\n' "$*" >&2; exit 1; }

without_candle=''
if [ "${1-}" = --without-candle ]; then
    without_candle=yes
    shift
fi
[ $# -ge 1 ] || { echo "build.sh: where to? build.sh [--without-candle] DIR [SOURCE.cu ...]" >&2; exit 2; }
out=$1
shift
if [ $# = 0 ]; then
    for source in "$root"/crates/*/kernels/*.cu; do
        [ ! -e "$source" ] || set -- "$@" "$source"
    done
fi
version=$(grep -A 1 '^name = "candle-kernels"$' "$root/Cargo.lock" | tail -n 1 | cut -d '"' -f 2)
candle=$(echo "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"candle-kernels-$version/src")
[ -d "$candle" ] || fail "no candle-kernels $version in cargo's registry; run: cargo fetch --locked"
# Not candle's quantized kernels and mixtures of experts, which the program has no use for.
sources=("$@")
[ -n "$without_candle" ] || sources+=("$candle"/{affine,binary,cast,conv,fill,indexing,reduce,sort,ternary,unary}.cu)

# AVX2 for speed, and its fused products with sums, which nvcc makes as well (-fmad=true). No other liberty with floats.
common=(-std=gnu++17 -O2 -march=x86-64-v3 -ffp-contract=fast -fPIC -fvisibility=hidden)
mkdir -p "$out/kernels" "$out/sources"
rm -f "$out"/kernels/* "$out"/sources/*

jobs_failed=0
# together COMMAND...: in the background, at most one for each processor at a time.
together() {
    if [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; then wait -n || jobs_failed=1; fi
    "$@" &
}

library() {
    local name=$1
    shift
    g++ "${common[@]}" -Wall -Wextra -shared -Wl,-soname,"$name" "$@" -o "$out/$name"
}

# kernels SOURCE: a library of the kernels of one source, since sources define functions of the same name. What g++ does not take
# is replaced: shared memory without an extent, and in candle's casts those that a GPU clamps.
kernels() {
    local source=$1 name rewritten flags
    name=$(basename "$source" .cu)
    rewritten=$out/sources/$name.cu
    # Kernels read floats as pairs of 16-bit ones. Integers wrap.
    flags=("${common[@]}" -fno-strict-aliasing -fwrapv -fno-gnu-unique -x c++ -D__CUDA_ARCH__=800
        -I"$(dirname "$source")" -I"$here/include" -include "$here/include/emulated.h")
    if [[ $source == "$candle"/* ]]; then
        flags+=(-w)
    else
        # A thread has a stack of 64 KiB.
        flags+=(-Werror=frame-larger-than=32768 -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-function -Wno-unused-parameter -Wno-sign-compare)
    fi
    {
        echo "#line 1 \"$source\""
        # An array of a function becomes a pointer, one of the file (in the first column) another name of the memory.
        sed -E -e '/extern\s+__shared__/ s/alignas\s*\([^()]*\)//' \
            -e 's/^(\s+)extern\s+__shared__(.*\W)(\w+)\s*\[\s*\]\s*;/\1\2 *\3 = (\2 *)emulated_dynamic_shared;/' \
            -e 's/^extern\s+__shared__(.*\W\w+)\s*\[\s*\]\s*;/extern \1[] __asm__("emulated_dynamic_shared");/' "$source" |
            if [ "$source" = "$candle/cast.cu" ]; then
                sed -E 's/static_cast<T>\((static_cast<I>\(.*\))\);/\1;/; s/out\[i\] = (.*);/emulated::convert(out[i], \1);/'
            else
                cat
            fi
    } >"$rewritten"
    # Kernels that are found by their name have it as it is written.
    g++ "${flags[@]}" -DEMULATED_LIST_KERNELS -E -P "$rewritten" | tr '\n' ' ' |
        grep -oP 'extern\s+"C"\s+EMULATED_GLOBAL\s+void\s+\K\w+' | sed 's/.*/EMULATED_KERNEL(&)/' >"$out/sources/$name.names" || true
    # shellcheck disable=SC2086 # flags are words
    g++ "${flags[@]}" ${EMULATED_CXXFLAGS-} -shared <(cat "$rewritten" "$out/sources/$name.names") -o "$out/kernels/$name.so" \
        -L"$out" -lcuda -Wl,-rpath,"\$ORIGIN/.." || return 1
    static_shared "$out/kernels/$name.so"
}

# static_shared LIBRARY: refuses a function with more shared memory of a fixed extent than a block has: 48 KiB.
static_shared() {
    # readelf has sizes from 100000 on in hexadecimal.
    readelf --syms --wide "$1" | awk '$4 == "TLS" && $8 ~ /^_ZZ/ { print ($3 ~ /^0x/ ? 100000 : $3), $8 }' | c++filt | awk '
        { bytes = $1; sub(/^[0-9]+ /, ""); sub(/::[^:]*$/, ""); sum[$0] += bytes }
        END { for (f in sum) if (sum[f] > 49152) { print f ": " sum[f] " bytes of shared memory, and 49152 are the most"; bad = 1 }
              exit bad }' >&2
}

library libcuda.so.1 "$here"/driver/{api,api_launch,api_memory,launch,memory,report,settings,shared_memory,shuffle,streams,threads}.cpp -ldl
ln -sf libcuda.so.1 "$out/libcuda.so"
together library libcublas.so.13 -O3 -I"$here/include" "$here"/driver/cublas.cpp -L"$out" -lcuda -Wl,-rpath,"\$ORIGIN"
together library libcurand.so.10 "$here/driver/curand.cpp"
for source in "${sources[@]}"; do together kernels "$source"; done
while [ -n "$(jobs -p)" ]; do wait -n || jobs_failed=1; done
[ $jobs_failed = 0 ] || fail "something did not compile"
echo "$(cat "$out"/sources/*.names | wc -l) kernels in $out"
