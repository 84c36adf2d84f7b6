#!/usr/bin/env bash
# tour.sh [DIR]: the whole way on the built-in corpus, whose entropy is known, into a folder of tables and pictures: training,
# n-gram models, a text token by token, sampling strategies, the truth, a sweep and a report. Takes some minutes on two cores.
#
# DIR (default: tour) must not exist. TINYGPT names the program (default: it is built from here).
set -euo pipefail

dir=${1:-tour}
[ -e "$dir" ] && { echo "tour.sh: $dir is there already; name another folder" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${TINYGPT:-}" ]; then
    (cd "$here" && cargo build --release --quiet)
    TINYGPT=$here/target/release/tinygpt
fi
TINYGPT=$(command -v "$TINYGPT") || { echo "tour.sh: there is no program $TINYGPT" >&2; exit 2; }
case $TINYGPT in /*) ;; *) TINYGPT=$PWD/$TINYGPT ;; esac
mkdir -p "$dir"
cd "$dir"
began=$SECONDS

# step NAME COMMAND...: its table goes to NAME.txt and is shown.
step() {
    local name=$1
    shift
    echo
    echo "== $name: tinygpt $*"
    "$TINYGPT" "$@" | tee "$name.txt"
}

# By characters, so that n-gram models of up to five of them can be compared with it; and by subwords, as the recipe is.
step train-characters train --config tiny --set data.tokenizer=char --set train.max_steps=2400 --out characters
step train-subwords train --config tiny --out subwords
step eval-stride eval subwords --stride 8
step baselines baseline characters --save 5-gram
step text-of-5-grams generate --checkpoint 5-gram --seed 1 --max-new-tokens 200
step score score subwords --compare --plot score.html "Once, bold funny Yuki met a small purple owl in the tiny grey boot!"
step strategies lab subwords --seed 1 --plot strategies.svg
step truth compare truth subwords --plot truth.svg
step sweep sweep --config tiny --set train.max_steps=200 --set train.eval_every=200 --set train.sample_every=0 \
    --set train.lr_matrices=0.005,0.02,0.08 --set model.n_layer=1,2,4 --jobs 2 --out sweep --plot sweep.svg
step report report subwords --out report.html

echo
echo "The tour took $((SECONDS - began)) seconds; its tables and pictures are in $PWD."
