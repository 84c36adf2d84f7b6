#!/usr/bin/env bash
# Checks the types of the Metal build on Linux, where there is no Metal: code behind the feature `metal`, ours and candle's,
# compiles, but is not linked and not run. What is behind cfg(target_os = "macos") is not seen.
#
# The crates that bind Apple's interfaces refuse other systems, but for GNUstep, an Objective-C runtime that need not be
# there for a check; and they name frameworks to link, which the compiler refuses. So a copy of the workspace, in
# target/metal, has them patched: the first by a feature, the second by deleting the lines.
set -euo pipefail
[ $# = 0 ] || { echo "check-metal.sh: takes no arguments" >&2; exit 2; }
cd "$(dirname "$0")/.."
copy=$PWD/target/metal/copy
# Dependencies that do not know of Metal are those that the lints of .ci/run have checked.
export CARGO_TARGET_DIR=$PWD/target RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc/metal

rm -rf "$copy"
mkdir -p "$copy/patched"
# Committed or not, but for what is deleted.
git ls-files --cached --others --exclude-standard -z | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || cp --parents -pP "$file" "$copy"
done

# What objc2 asks for where it is not on an Apple system.
printf 'objc2 = { version = "*", features = ["gnustep-2-1"] }\nblock2 = { version = "*", features = ["gnustep-2-1"] }\n' \
    >"$copy/gnustep"
sed -i "/^\[dependencies\]/r $copy/gnustep" "$copy/crates/cli/Cargo.toml"

echo '[patch.crates-io]' >>"$copy/Cargo.toml"
manifests=$(cargo metadata --locked --format-version 1 --all-features | grep -o '"manifest_path":"[^"]*"' | cut -d '"' -f 4)
for crate in objc2 objc2-core-foundation objc2-foundation objc2-metal; do
    manifest=$(grep -E "/$crate-[0-9.]+/Cargo.toml$" <<<"$manifests") ||
        { echo "check-metal.sh: Cargo.lock has no $crate: is it named otherwise now?" >&2; exit 1; }
    cp -r "$(dirname "$manifest")" "$copy/patched/$crate"
    find "$copy/patched/$crate/src" -name '*.rs' -exec sed -i -E \
        '/#\[link\(.*kind *= *"framework".*\)\]/d; s/#!?\[cfg_attr\([^]]*kind *= *"framework"\)\)\]//' {} +
    echo "$crate = { path = \"patched/$crate\" }" >>"$copy/Cargo.toml"
done

cd "$copy"
cargo check --package tinygpt-cli --features metal --all-targets
echo "Metal build checked; nothing was linked or run"
