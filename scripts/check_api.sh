#!/usr/bin/env bash
# scripts/check_api.sh PROGRAM RUN [SECONDS]: schemathesis walks through what `tinygpt serve` says of itself in /openapi.json.
#
# It sends what fits the description and what does not, for some seconds (40), and fails where an answer is a 500 or is none that the
# description has. Schemathesis is that of the interpreter which PYTHON names; without PYTHON it is installed from PyPI, into
# target/api-venv. Where it cannot be had, this says so and checks nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1 run=$2 seconds=${3-40}
python=$(scripts/python_with.sh target/api-venv schemathesis schemathesis==4.32.5) || exit 0
exec "$python" -B scripts/check_api.py "$program" "$run" "$seconds"
