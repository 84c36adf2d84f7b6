#!/usr/bin/env bash
# scripts/check_page.sh [OUT]: the page of `tinygpt serve`, in headless Chromium. Screenshots go to OUT, a folder (target/page).
#
# Builds the program, or takes that which TINYGPT names. Needs Chromium (on Debian: `apt install chromium`), and Playwright and axe-core for
# python3, or for the interpreter that PYTHON names: `pip install playwright axe-playwright-python`. Without them it says so and
# checks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1-target/page}
program=${TINYGPT-target/debug/tinygpt}
[ -n "${TINYGPT-}" ] || cargo build --workspace --locked
exec "${PYTHON-python3}" scripts/check_page.py "$program" "$out"
