#!/usr/bin/env bash
# The whole way from a raw log to an exported recommender, on MovieLens-100K with SmolLM2-135M's first layers.
# Each step is a command you can type yourself.
set -euo pipefail
BIN=${BIN:-.venv/bin}
DEMO=${DEMO:-demo}
started=$SECONDS

step() { printf '\n\033[1m$ llmd4rec %s\033[0m\n' "$*"; "$BIN/llmd4rec" "$@"; }

rm -rf "$DEMO/raw" "$DEMO/data" "$DEMO/run" "$DEMO/export"
step data get ml-100k --out "$DEMO/raw"
step prepare --interactions "$DEMO/raw/interactions.parquet" --items "$DEMO/raw/items.parquet" --out "$DEMO/data"
step train examples/demo.yaml --data "$DEMO/data" --run "$DEMO/run"
step evaluate "$DEMO/run"
step compare "$DEMO/run" "$DEMO/run" --stage-a alone --stage-b distilled
step export "$DEMO/run" --out "$DEMO/export"
step recommend "$DEMO/run" --history "50,181,172" -k 5

printf '\nThe whole demo took %d s. Open %s/run/report.html in a browser.\n' $((SECONDS - started)) "$DEMO"
