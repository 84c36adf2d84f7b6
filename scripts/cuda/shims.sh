#!/usr/bin/env bash
# shims.sh DIR: makes stand-ins of the CUDA libraries that the program links to (see shim.c), DIR/lib*.a, for the functions
# that the cudarc of Cargo.lock declares. A program linked with them starts on a machine without CUDA.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
mkdir -p "$dir"

# Where cargo keeps the source of cudarc, in the version of Cargo.lock.
manifest=$(cargo metadata --locked --format-version 1 --all-features --manifest-path "$here/../../Cargo.toml" |
    grep -o '"manifest_path":"[^"]*/cudarc-[^/"]*/Cargo.toml"' | cut -d '"' -f 4) || true
[ -f "$manifest" ] || { echo "shims.sh: no source of cudarc in cargo's registry; run: cargo fetch --locked" >&2; exit 1; }

# shim LIBRARY MODULE FAIL SONAME...: the stand-in of a library, of whose functions cudarc's MODULE tells. FAIL is what a
# call gives where the library is absent.
shim() {
    local library=$1 module=$2 fail=$3 sonames
    shift 3
    printf -v sonames '"%s",' "$@"
    grep -oP '^ +fn \K(cu|nvrtc)\w+' "$(dirname "$manifest")/src/$module/sys/mod.rs" | sort -u |
        sed 's/^/shim /' >"$dir/symbols.s"
    [ -s "$dir/symbols.s" ] || { echo "shims.sh: cudarc declares no functions in $module" >&2; exit 1; }
    cc -O2 -fPIC -Wall -DFAIL="$fail" -DSONAMES="$sonames" -Wa,-I,"$dir" -c "$here/shim.c" -o "$dir/$library.o"
    rm -f "$dir/lib$library.a"
    ar rcs "$dir/lib$library.a" "$dir/$library.o"
    rm "$dir/$library.o" "$dir/symbols.s"
}

shim cuda driver 100 libcuda.so.1                               # CUDA_ERROR_NO_DEVICE
shim nvrtc nvrtc 11 libnvrtc.so.13 libnvrtc.so.12               # NVRTC_ERROR_INTERNAL_ERROR
shim curand curand 101 libcurand.so.10                          # CURAND_STATUS_NOT_INITIALIZED
shim cublas cublas 1 libcublas.so.13 libcublas.so.12            # CUBLAS_STATUS_NOT_INITIALIZED
shim cublasLt cublaslt 1 libcublasLt.so.13 libcublasLt.so.12    # CUBLAS_STATUS_NOT_INITIALIZED
