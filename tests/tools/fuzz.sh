#!/usr/bin/env bash
# Run every fuzz target of protocol/fuzz, or those named, for the given number of seconds each.
#
#   tests/tools/fuzz.sh [SECONDS [TARGET...]]
#
# The protocol's vectors are the seeds. What is found stays in protocol/fuzz/corpus (it is the
# next run's start) and, if it breaks something, in protocol/fuzz/artifacts.
set -eu
cd "$(dirname "$0")/../.."

seconds=${1:-60}
[ $# -eq 0 ] || shift
fuzz=$PWD/.tools/bin/cargo-fuzz
seeds=$PWD/protocol/fuzz/corpus/seeds
mkdir -p "$seeds"
FARTHING_SEEDS=$seeds cargo test --quiet --locked -p farthing-protocol --features net,testing \
    --test decoders -- seeds_are_written >/dev/null

# The sanitizers are unstable options of the pinned stable compiler.
export RUSTC_BOOTSTRAP=1
[ $# -gt 0 ] || set -- $("$fuzz" list --fuzz-dir protocol/fuzz)
for target in "$@"; do
    printf '[fuzz] %s for %s s\n' "$target" "$seconds"
    mkdir -p "protocol/fuzz/corpus/$target"
    "$fuzz" run --fuzz-dir protocol/fuzz "$target" "protocol/fuzz/corpus/$target" "$seeds" -- \
        -max_total_time="$seconds" -max_len=65536 -timeout=10 -rss_limit_mb=1024 \
        -malloc_limit_mb=64 -print_final_stats=1
done
