#!/usr/bin/env bash
# Pin what the project needs, with hashes and without a registry's address, into the two constraints files.
set -eu
cd "$(dirname "$0")/.."
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/pip" install --quiet pip-tools
compile() {
  "$tools/venv/bin/pip-compile" --quiet --strip-extras --generate-hashes --no-annotate --no-header --allow-unsafe \
    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options --resolver=backtracking "$@"
}
.venv/bin/python - "$tools" <<'PY'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
run = project["project"]["dependencies"] + ["hatchling", "editables"]
open(f"{sys.argv[1]}/run.in", "w").write("\n".join(run))
open(f"{sys.argv[1]}/dev.in", "w").write("\n".join(run + project["dependency-groups"]["dev"]))
PY
compile --output-file constraints.txt "$tools/run.in"
compile --constraint constraints.txt --output-file dev-constraints.txt "$tools/dev.in"
