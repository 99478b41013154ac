#!/usr/bin/env bash
# cargo-deny over the workspace: bans, licences and sources always; advisories when their
# database can be had. Offline, deny.toml's own list of known advisories is what stands.
set -eu
cd "$(dirname "$0")/../.."

if [ -x .tools/bin/cargo-deny ]; then
    deny=.tools/bin/cargo-deny
elif command -v cargo-deny >/dev/null 2>&1; then
    deny=cargo-deny
else
    tests/tools/setup.sh deny
    deny=.tools/bin/cargo-deny
fi
# Duplicates are worth a look when upgrading (DENY_VERBOSE=1), not a page in every run.
quiet=(--allow duplicate)
[ -z "${DENY_VERBOSE:-}" ] || quiet=()

# It reads the manifests of every crate, also of those other platforms would build.
cargo fetch --locked --quiet
"$deny" --all-features check --hide-inclusion-graph "${quiet[@]}" bans licenses sources

limit=()
command -v timeout >/dev/null 2>&1 && limit=(timeout 60)
if "${limit[@]}" "$deny" fetch db >/dev/null 2>&1; then
    "$deny" --all-features check --disable-fetch --hide-inclusion-graph advisories
else
    echo "advisories: NOT CHECKED, the RustSec database cannot be reached from here."
    echo "            Known and accepted ones, with their reasons, are in deny.toml."
fi
