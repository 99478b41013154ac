#!/bin/sh
# Runs the contracts' tests. Arguments go to `forge test`.
#   FUZZ_RUNS=100000 INVARIANT_RUNS=2000 ./test.sh     a long run
#   ./test.sh --gas                                    the gas table, and nothing else
set -eu
cd "$(dirname "$0")"
. ./toolchain.sh

if [ "${1:-}" = "--gas" ]; then
    export FOUNDRY_PROFILE=gas
    forge test --match-contract GasTable -vv | grep '|'
    exit
fi

# Only named when asked for: foundry.toml holds the defaults.
if [ -n "${FUZZ_RUNS:-}" ]; then export FOUNDRY_FUZZ_RUNS="$FUZZ_RUNS"; fi
if [ -n "${INVARIANT_RUNS:-}" ]; then export FOUNDRY_INVARIANT_RUNS="$INVARIANT_RUNS"; fi
if [ -n "${INVARIANT_DEPTH:-}" ]; then export FOUNDRY_INVARIANT_DEPTH="$INVARIANT_DEPTH"; fi
forge test "$@"
