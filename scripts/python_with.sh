#!/usr/bin/env bash
# scripts/python_with.sh VENV MODULES PACKAGE...: an interpreter that can import MODULES (as `a, b`), by its path.
#
# It is the one that PYTHON names; without PYTHON, that of the folder VENV, into which the packages are installed from PyPI where
# they are missing. Ends with 1, and says so, where they cannot be.
set -euo pipefail
venv=$1 modules=$2
shift 2
if [ -n "${PYTHON-}" ]; then
    echo "$PYTHON"
    exit
fi
if ! "$venv/bin/python" -c "import $modules" 2>/dev/null; then
    { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet "$@"; } >&2 ||
        { echo "skipped: $* cannot be installed" >&2; exit 1; }
fi
echo "$venv/bin/python"
