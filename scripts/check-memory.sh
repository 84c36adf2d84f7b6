#!/usr/bin/env bash
# check-memory.sh: runs the unit tests of the libraries under AddressSanitizer, for the sake of what is `unsafe` in them: the
# vector kernels on every level of this processor, products and decoder, the spin pool, and mapped files. Two minutes.
#
# Needs x86-64 Linux and a toolchain that comes with the sanitizer's runtime, as those of rustup do; no nightly compiler. Only the
# crates of the workspace are instrumented: dependencies are those that `cargo test` has built.
set -euo pipefail
[ $# = 0 ] || { echo "check-memory.sh: takes no arguments" >&2; exit 2; }
cd "$(dirname "$0")/.."
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "check-memory.sh: needs Linux on x86-64, and this is $(uname -sm)" >&2; exit 1; }
compgen -G "$(rustc --print target-libdir)/librustc-*_rt.asan.a" >/dev/null ||
    { echo "check-memory.sh: this toolchain has no runtime of AddressSanitizer" >&2; exit 1; }
export RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc/address-sanitizer
# Nothing `unsafe` here allocates, so a leak would be no finding; rayon's threads outlive the tests.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1

cargo test --locked --workspace --lib
echo "no error of memory found"
