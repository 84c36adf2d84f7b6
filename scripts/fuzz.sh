#!/usr/bin/env bash
# scripts/fuzz.sh [SECONDS [TARGET ...]]: runs the fuzz targets (all, if none is named), each for so long (60 s).
#
# The files that a target begins with are those of tests/fixtures and fuzz/seeds; what it finds beside them stays in fuzz/corpus, and what fails in
# fuzz/artifacts, with the command that runs it again. A target fails on a panic, an invalid access, an allocation of more than 512 MB
# or an input that takes more than 5 s. fuzz/README.md says what each target holds.
#
# Needs a nightly compiler and `cargo install cargo-fuzz`.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1-60}
if [ $# -gt 1 ]; then targets=("${@:2}"); else mapfile -t targets < <(cargo fuzz list); fi

fixtures=../tests/fixtures/transformers
# seed TARGET FILE ...: files that a target begins with.
seed() {
    local target=$1 file
    mkdir -p "corpus/$target"
    for file in "${@:2}"; do cp "$file" "corpus/$target/seed-$(sha1sum <"$file" | cut -c -16)"; done
}
seed config_json "$fixtures"/*/config.json
seed tokenizer_json "$fixtures"/*/tokenizer.json seeds/tokenizer_json/*
seed safetensors "$fixtures"/gpt2-{gelu-new,f16}/model.safetensors
seed safetensors_index "$fixtures"/*/model.safetensors.index.json
seed gguf ../tests/fixtures/gguf/*.gguf

for target in "${targets[@]}"; do
    printf '== %s\n' "$target"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb=512 -timeout=5 -print_final_stats=1
done
