#!/usr/bin/env bash
# check-loom.sh: runs the spin pool (crates/model/src/cpu/spin_pool.rs) under loom, in every interleaving of its threads that
# has no more than LOOM_MAX_PREEMPTIONS preemptions, 4 if not set: some seconds. A failure prints the interleaving's panic.
#
# It is `RUSTFLAGS="--cfg loom" cargo test -p tinygpt-model --lib loom_tests`, but only the crates of the workspace are compiled
# with that flag, so that most dependencies are those that `cargo test` has built.
set -euo pipefail
[ $# = 0 ] || { echo "check-loom.sh: takes no arguments" >&2; exit 2; }
cd "$(dirname "$0")/.."
export RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc/loom
export LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-4}
# Built for this alone, since loom asks for another feature of the crate `log`, and not run.
idle=(--config 'profile.dev.package.candle-core.opt-level=0' --config 'profile.dev.package.tokenizers.opt-level=0')
# tinygpt-cli has no library to test: it is there for the features of dependencies, which are then those of the workspace.
printed=$(cargo test --locked "${idle[@]}" --package tinygpt-model --package tinygpt-cli --lib -- loom_tests) || { echo "$printed"; exit 1; }
echo "$printed"
grep -q '^test result: ok. [1-9]' <<<"$printed" || { echo "check-loom.sh: there is no model to run" >&2; exit 1; }
