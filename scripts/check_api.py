#!/usr/bin/env python3
"""Has schemathesis walk through the description of a server's API; scripts/check_api.sh says how, and gets what it needs.

    check_api.py PROGRAM RUN SECONDS

The description that is walked through is the server's, with shorter texts: no walk should wait for 65,536 tokens.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

# A request may be right as it is described, and yet ask for what this model does not have: the first is checked, the second is 400.
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
# The largest values of some keys.
MOST = {"max_tokens": 8, "max_completion_tokens": 8, "n": 2}


def shortened(description):
    """The description with short texts, and a few at a time."""
    for schema in description["components"]["schemas"].values():
        keys = schema.get("properties", {})
        # It must be the number of texts, which nothing that is made up is.
        keys.pop("best_of", None)
        for name, most in MOST.items():
            for kind in keys.get(name, {}).get("anyOf", []):
                if kind.get("type") == "integer":
                    kind["maximum"] = most
        if "max_tokens" in keys:
            # Without it, the run says how long a text is.
            schema["required"].append("max_tokens")
    return description


def main():
    program, run, seconds = sys.argv[1:]
    command = [program, "serve", run, "--port", "0", "--runs", str(Path(run).parent)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer:
            description = shortened(json.load(answer))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "openapi.json"
            file.write_text(json.dumps(description))
            walk = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", url, "--checks", CHECKS, "--max-time", seconds]
            walk += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--seed", "1", "--no-color"]
            # Its settings and what it learns are of no other run.
            code = subprocess.run(walk, cwd=folder).returncode
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            assert json.load(answer) == {"status": "ok"}
    finally:
        server.terminate()
        server.wait(timeout=60)
    sys.exit(code)


if __name__ == "__main__":
    main()
