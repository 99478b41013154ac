#!/bin/sh
# Slither over what `forge build` compiled; anything it finds of low impact or more is a failure.
# What was found and judged is named in README.md: excluded in slither.config.json, or by a
# comment in the source where it stands.
set -eu
cd "$(dirname "$0")"
. ./toolchain.sh

slither=../../.tools/slither/bin/slither
[ -x "$slither" ] || { echo "no slither: run tests/tools/setup.sh slither" >&2; exit 1; }
# A build of its own: slither reads every one it finds.
rm -rf out/lint cache/lint
FOUNDRY_OUT=out/lint FOUNDRY_CACHE_PATH=cache/lint forge build --quiet --build-info --skip test
# Slither asks forge for its settings.
PATH="$PWD/node_modules/.bin:$PATH" "$slither" . --config-file slither.config.json
