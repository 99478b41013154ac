# Sourced by build.sh and test.sh: installs the pinned tools once, and defines `forge`.
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    echo "contracts: installing the pinned toolchain (npm ci)" >&2
    # No install scripts: forge's only fetches a binary that its platform package already holds.
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    touch node_modules/.package-lock.json
fi

# An inherited FOUNDRY_SOLC would replace the pinned compiler, and an empty one breaks forge.
unset FOUNDRY_SOLC

forge() { node_modules/.bin/forge "$@"; }
