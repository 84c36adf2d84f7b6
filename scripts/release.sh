#!/usr/bin/env bash
# release.sh [--out DIR] [--target TARGET]: an archive of the program for Linux on x86-64, and SHA256SUMS beside it.
#
# In the archive: the program, completions for bash, zsh and fish, manual pages, README, CHANGELOG and licences. The same commit
# gives the same archive, but for what compilers change. The target is
#   x86_64-unknown-linux-musl   where rustup has it and musl-gcc is there: a static program, for any Linux
#   x86_64-unknown-linux-gnu    else: for systems with the glibc that is named at the end, or a later one
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

out=target/release-archives target=
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=${2:?--out needs a folder}; shift 2 ;;
        --target) target=${2:?--target needs a target}; shift 2 ;;
        *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
if [ -z "$target" ]; then
    target=x86_64-unknown-linux-gnu
    if command -v musl-gcc >/dev/null && rustup target list --installed 2>/dev/null | grep -qx x86_64-unknown-linux-musl; then
        target=x86_64-unknown-linux-musl
    fi
fi
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
name=tinygpt-$version-$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What is written in C, the cryptography of downloads and zstd, is compiled for musl too.
CC_x86_64_unknown_linux_musl=musl-gcc cargo build --release --locked --target "$target"
program=target/$target/release/tinygpt

folder=$work/$name
mkdir -p "$folder/completions" "$folder/man/man1"
install -m 755 "$program" "$folder/tinygpt"
"$folder/tinygpt" completions bash > "$folder/completions/tinygpt.bash"
"$folder/tinygpt" completions zsh > "$folder/completions/_tinygpt"
"$folder/tinygpt" completions fish > "$folder/completions/tinygpt.fish"
"$folder/tinygpt" man --dir "$folder/man/man1"
install -m 644 README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$folder"

# The program that is packed trains and generates.
(
    cd "$work"
    export TINYGPT_CACHE=$work/cache
    "$folder/tinygpt" train --config tiny --out run --set train.max_steps=2 --set data.stories_bytes=60000 >/dev/null 2>"$work/log" ||
        { cat "$work/log" >&2; exit 1; }
    "$folder/tinygpt" generate --checkpoint run --prompt Once --seed 1 --max-new-tokens 5 >/dev/null
)

if [[ $target == *-musl ]]; then
    # A static program names no interpreter.
    if readelf -l "$program" | grep -q INTERP; then echo "release.sh: $program is not static" >&2; exit 1; fi
    needs="any Linux"
else
    needs="Linux with glibc $(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 | cut -d_ -f2) or later"
fi

mkdir -p "$out"
when=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$when" -C "$work" -cf - "$name" | gzip -9n > "$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" > SHA256SUMS)
printf '%s/%s.tar.gz: %s, for %s\n' "$out" "$name" "$(du -h "$out/$name.tar.gz" | cut -f1)" "$needs"
cat "$out/SHA256SUMS"
