#!/usr/bin/env bash
# check.sh: tests of the emulated device itself: kernels and calls with each fault that it has to find, and correct ones, which it
# must leave alone. Takes half a minute.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset "${!EMULATED_@}"

"$here/build.sh" --without-candle "$work/device" "$here"/tests/{correct,faulty}.cu
g++ -std=gnu++17 -O1 -Wall "$here/tests/main.cpp" -o "$work/main" -L"$work/device" -lcuda "$work/device/libcublas.so.13" -pthread
export LD_LIBRARY_PATH=$work/device
failed=0

# expect CASE PATTERN [SETTING...]: a run of the case prints this.
expect() {
    local printed
    printed=$(env "${@:3}" "$work/main" "$1" 2>&1) || true
    if ! grep -qE -- "$2" <<<"$printed"; then
        printf 'check.sh: %s: no `%s` in:\n%s\n' "$1 ${*:3}" "$2" "$printed" >&2
        failed=1
    fi
}
# in_silence CASE PATTERN [SETTING...]: the same, and nothing is complained of, which would end the program.
in_silence() { expect "$@" EMULATED_STRICT=1; }

orders=(EMULATED_ORDER=normal EMULATED_ORDER=reverse EMULATED_ORDER=random "EMULATED_ORDER=random EMULATED_SEED=2")
for order in "${orders[@]}"; do
    for guard in none end start; do
        # shellcheck disable=SC2206 # an order may be two settings
        setting=(EMULATED_GUARD=$guard $order)
        for case in exchanges numbers small_floats async_copies atomics row_sums much_shared mma wmma products follows_addresses; do
            [ "$case $guard" != "products start" ] || continue # the slowest, which has seen a guard
            in_silence $case '^right$' "${setting[@]}"
        done
        in_silence sums '^first 2016$' "${setting[@]}"
        in_silence two_streams_with_an_event '^launch 0$' "${setting[@]}"
    done
done
in_silence pool '^right$'

# Accesses that are out of bounds.
expect writes_beyond 'writes_beyond: wrote beside an allocation of 256 bytes'
expect writes_before 'writes_before: wrote beside an allocation of 256 bytes'
expect writes_beyond 'writes_beyond: block \(0, 0, 0\), thread \(63, 0, 0\): an access to .*, 0 bytes beyond an allocation of 256' EMULATED_GUARD=end
expect writes_beyond '^read-back 700$' EMULATED_GUARD=end
expect reads_beyond 'reads_beyond: block \(0, 0, 0\), thread \(63, 0, 0\): an access to .* bytes beyond' EMULATED_GUARD=end
expect reads_before 'reads_before: block \(0, 0, 0\), thread \(0, 0, 0\): an access to .* bytes before' EMULATED_GUARD=start
expect writes_before 'thread \(0, 0, 0\): an access to .* bytes before' EMULATED_GUARD=start
expect writes_beyond_shared 'writes_beyond_shared: wrote beyond its 252 bytes of dynamic shared memory'
expect copy_beyond 'copy: 68 bytes at byte 0 of an allocation of 64'
expect copy_beyond '^copy 1$'
expect product_beyond 'gemm, A: 512 bytes at byte 0 of an allocation of 508'
expect product_beyond '^product 13$'
expect of_the_host 'copies: an address that is not memory of the device, or was freed'
expect of_the_host '^read-back 700$'
expect freed 'copies: an address that is not memory of the device, or was freed'
expect free_twice 'free: nothing is allocated at this address'

# Memory that nobody wrote.
expect unwritten 'copies: reads memory that was never written'
expect writes_half 'read-back: reads bytes that were never written'
expect adds_what_shared_memory_held '^first -?nan$'

# Barriers: what one order of threads hides another shows.
expect sums_without_barrier '^first 2016$' EMULATED_ORDER=reverse
expect sums_without_barrier '^first -?nan$'
expect reads_before_its_copy '^first -?nan$'
expect copies_over_what_others_read '^first -?nan$'
expect waits_in_two_places 'waits_in_two_places: block \(0, 0, 0\): its threads wait at different barriers, one of them in line [0-9]+'
expect waits_for_warp_and_block 'waits_for_warp_and_block: its threads wait at different places; 32 wait at the barrier in line [0-9]+, one is block \(0, 0, 0\), thread \(1, 0, 0\); 16 wait for lanes'
expect waits_for_warp_and_block '^read-back 719$'
expect ends_before_a_barrier 'ends_before_a_barrier: threads had ended before the barrier in line [0-9]+'
expect shuffles_from_an_ended_lane 'block \(0, 0, 0\), thread \([0-9]+, 0, 0\): a shuffle reads a lane that does not take part'
expect shuffles_outside_of_its_mask 'thread \([0-9]+, 0, 0\): it is not in the mask of its own operation'
expect shuffles_and_votes_at_once 'the lanes of its warp are at different operations'

# What ends a kernel.
expect asserts 'asserts: block \(0, 0, 0\), thread \(40, 0, 0\): assertion failed: threadIdx.x < 40'
expect asserts '^read-back 710$'
expect divides_by_zero 'divides_by_zero: block \(0, 0, 0\), thread \(0, 0, 0\): integer division by zero'
expect divides_by_zero '^read-back 719$'
expect copies '^read-back 700$' EMULATED_FAILING_LAUNCH=1
expect copies '^first 0$' EMULATED_FAILING_LAUNCH=2

# Launches that a GPU refuses.
expect no_blocks '^launch 1$'
expect large_block 'copies: no GPU takes a grid of \(1, 1, 1\) blocks of \(1025, 1, 1\) threads'
expect large_block '^launch 1$'
expect much_shared_unasked 'row_sums: .* 60000 bytes of shared memory, for which it was not prepared'
expect much_shared_unasked '^launch 1$'
expect too_much_shared '^prepared 1$'
if "$here/build.sh" --without-candle "$work/large" "$here/tests/large_shared.cu" >"$work/large.log" 2>&1 ||
    ! grep -q '^large: 49156 bytes of shared memory' "$work/large.log"; then
    echo "check.sh: a kernel with more than 48 KiB of fixed shared memory was built:" >&2
    cat "$work/large.log" >&2
    failed=1
fi

# Devices of another kind, and streams.
expect no_bytes 'remark: an allocation of no bytes'
expect no_bytes '^allocation 1$' EMULATED_POOLS=0
expect too_much_memory '^allocation 2$' EMULATED_MEMORY=2
expect two_streams 'copies: uses memory that upload wrote on another stream, without an order between them'
expect nowhere 'no kernel is named nowhere'
expect copies 'EMULATED_GUARD=yes is no such setting' EMULATED_GUARD=yes

# Counts.
counts=$(EMULATED_COUNTS=/dev/stdout "$work/main" sums 2>&1)
for count in '"launches": 1' '"uploads": 1' '"uploads_bytes": 256' '"read_backs": 1' '"allocations": 2' '"peak_bytes": 512' '"sums": {"times": 1'; do
    grep -qF -- "$count" <<<"$counts" || { printf 'check.sh: no `%s` in:\n%s\n' "$count" "$counts" >&2; failed=1; }
done
[ $failed = 0 ] || exit 1
echo "the emulated device finds what it has to"
