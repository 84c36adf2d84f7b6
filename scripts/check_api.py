#!/usr/bin/env python3
"""Has schemathesis walk through the description of a server's API; scripts/check_api.sh says how, and gets what it needs.

    check_api.py PROGRAM RUN SECONDS

The description that is walked through is the server's, with its model in the place of any name, and shorter texts: no walk should wait
for 65,536 tokens. A copy of the run is served, with a chat template.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

# A request may be right as it is described, and yet ask for what this model does not have: the first is checked, the second is 400.
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
# The largest values of some keys.
MOST = {"max_tokens": 8, "max_completion_tokens": 8, "n": 2}


def walkable(description, model):
    """The description with a model that there is, and short texts, a few at a time."""
    for schema in description["components"]["schemas"].values():
        keys = schema.get("properties", {})
        # It must be the number of texts, which nothing that is made up is.
        keys.pop("best_of", None)
        for name, most in MOST.items():
            for kind in keys.get(name, {}).get("anyOf", []):
                if kind.get("type") == "integer":
                    kind["maximum"] = most
        if "model" in keys and "id" not in keys and "object" not in keys:
            keys["model"] = {"enum": [model, None]}
        if "max_tokens" in keys:
            # Without it, the run says how long a text is.
            schema["required"].append("max_tokens")
    return description


def main():
    program, run, seconds = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        # What schemathesis keeps lies there as well: it is of no other walk.
        code = walked(program, Path(run), seconds, Path(folder))
    sys.exit(code)


def walked(program, run, seconds, folder):
    """The exit code of a walk."""
    model = folder / "runs" / "walked"
    shutil.copytree(run, model)
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    command = [program, "serve", str(model), "--port", "0", "--runs", str(model.parent)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer:
            description = walkable(json.load(answer), model.name)
        file = folder / "openapi.json"
        file.write_text(json.dumps(description))
        walk = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", url, "--checks", CHECKS, "--max-time", seconds]
        walk += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--seed", "1", "--no-color"]
        code = subprocess.run(walk, cwd=folder).returncode
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            assert json.load(answer) == {"status": "ok"}
        return code
    finally:
        server.terminate()
        server.wait(timeout=60)


if __name__ == "__main__":
    main()
