#!/bin/sh
# Compiles the contracts and writes artifacts/*.json; with --check, writes nothing and fails when
# the committed artifacts are not what the sources compile to.
set -eu
cd "$(dirname "$0")"
. ./toolchain.sh

forge build --quiet --skip test
exec node artifacts.mjs "$@"
