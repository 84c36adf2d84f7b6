#!/usr/bin/env bash
# scripts/check_page.sh [OUT]: the page of `tinygpt serve`, in headless Chromium. Screenshots go to OUT, a folder (target/page).
#
# Builds the program, or takes that which TINYGPT names. Needs Chromium (on Debian: `apt install chromium`), and Playwright and
# axe-core for the interpreter that PYTHON names; without PYTHON they are installed from PyPI, into target/page-venv. Where one of them
# cannot be had, it says so and checks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1-target/page}
command -v chromium >/dev/null || { echo "skipped: there is no chromium (on Debian: apt install chromium)" >&2; exit 0; }
python=$(scripts/python_with.sh target/page-venv "playwright, axe_playwright_python" playwright==1.65.2 axe-playwright-python==0.1.8) || exit 0
program=${TINYGPT-target/debug/tinygpt}
[ -n "${TINYGPT-}" ] || cargo build --workspace --locked
exec "$python" -B scripts/check_page.py "$program" "$out"
