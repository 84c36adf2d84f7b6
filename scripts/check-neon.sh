#!/usr/bin/env bash
# check-neon.sh: compiles the unit tests of tinygpt-sampler and tinygpt-model for aarch64 and runs them on an emulated processor:
# every operation of NEON against the level without vectors, every product and gradient on both, and the hashes of training and
# decoding that x86-64 has too (crates/model/tests/processors.rs).
#
# Needs Linux on x86-64, and from Debian `apt-get install qemu-user gcc-aarch64-linux-gnu`, from rustup
# `rustup target add aarch64-unknown-linux-gnu`. It says what is missing and ends with 3. The dependencies are compiled for aarch64,
# into target/aarch64-unknown-linux-gnu: six minutes of processor time the first time.
set -euo pipefail
[ $# = 0 ] || { echo "check-neon.sh: takes no arguments" >&2; exit 2; }
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
missing=()
command -v qemu-aarch64 >/dev/null || missing+=("qemu-aarch64 of Debian's qemu-user")
command -v aarch64-linux-gnu-gcc >/dev/null || missing+=("gcc-aarch64-linux-gnu")
[ -d "$(rustc --print target-libdir --target $target)" ] || missing+=("Rust's standard library: rustup target add $target")
if [ ${#missing[@]} -gt 0 ]; then
    printf 'check-neon.sh: missing here: %s\n' "${missing[@]}" >&2
    exit 3
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
# Emulation is slow whatever the code, and optimising dependencies takes most of the time.
test=(cargo test --locked --target $target --config profile.dev.opt-level=1 --package tinygpt-model)

# The device path of the sampler is candle's tensors, and takes longest.
"${test[@]}" --package tinygpt-sampler --lib -- --skip device::
printed=$("${test[@]}" --test main processors::) || { echo "$printed"; exit 1; }
echo "$printed"
grep -q '^test result: ok. [1-9]' <<<"$printed" || { echo "check-neon.sh: there are no hashes to compare" >&2; exit 1; }
echo "NEON gives the bits of x86-64"
