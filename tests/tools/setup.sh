#!/usr/bin/env bash
# Put the pinned real parts of the tests into .tools/ at the repository root.
#
#   tests/tools/setup.sh                      all of: anvil model clients suites openrouter schemathesis x402 agents aider codex
#   tests/tools/setup.sh anvil model          only these
#
#   anvil    the EVM chain (npm; the same folder also holds the stock Node client)
#   model    llama.cpp's server and a small language model (a Python environment)
#   clients  the stock Python clients (a Python environment)
#   suites   the tests that the makers of the stock Python clients run, and what these need
#   openrouter, schemathesis   OpenRouter's Python client, and a fuzzer of APIs (likewise)
#   slither  the contracts' linter (a Python environment)
#   x402     the stock x402 clients (npm, and a Python environment)
#   agents   what agents' developers use: MCP, LangChain, llm (a Python environment), AI SDK (npm)
#   aider    the coding agent of that name (a Python environment; Python 3.12 or older)
#   codex    OpenAI's coding agent (npm)
#   peers    LiteLLM's gateway (a Python environment) and Portkey's (npm); only `make bench-peers` asks
#   deny     cargo-deny, built from source: minutes, so only `make deny` asks for it
#   fuzz     cargo-fuzz, built from source, for `make fuzz`
#
# Versions and hashes are in the files beside this one. A part whose files have not changed
# since it was installed costs a few milliseconds.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
tools="$root/.tools"
cargo_deny_version=0.20.2
cargo_fuzz_version=0.13.2

say() { printf '[setup] %s\n' "$*"; }
fail() {
    printf '[setup] %s\n' "$*" >&2
    exit 1
}

# A digest of what comes in: what a part was made from.
digest() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi | cut -c1-64
}

# python3 if it is new enough, else the newest numbered one.
find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.10 or newer found; install one and run this again"
}

# One that aider runs on.
find_older_python() {
    for name in python3 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

need_node() {
    command -v npm >/dev/null 2>&1 || fail "npm not found; install Node.js 20 or newer"
    node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' ||
        fail "Node.js $(node --version) is too old; 20 or newer is needed"
}

# part NAME WHAT DIGEST COMMAND...: run COMMAND unless NAME is already made from DIGEST.
part() {
    name=$1 what=$2 wanted=$3
    shift 3
    stamp="$tools/stamps/$name"
    # Two at once (a `make test` beside a `make demo`) take turns at a part, where flock exists.
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$tools/stamps/$name.lock"
        flock 9
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "$name: ready ($what)"
        return
    fi
    say "$name: installing $what ..."
    began=$(date +%s)
    rm -f "$stamp"
    "$@" >"$tools/$name.log" 2>&1 || {
        tail -n 30 "$tools/$name.log" >&2
        fail "$name: failed; the whole story is in .tools/$name.log"
    }
    printf '%s\n' "$wanted" >"$stamp"
    say "$name: done in $(($(date +%s) - began)) s"
}

# A virtual environment with exactly the listed wheels: no other dependency, no build.
install_python() {
    folder=$1
    shift
    rm -rf "$folder"
    "$python" -m venv "$folder" ||
        { echo "python could not make an environment; on Debian: apt install python3-venv"; return 1; }
    "$folder/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps \
        --only-binary :all: --require-hashes "${@/#/--requirement=}"
}

# The sources that a list names by address and hash, unpacked; nothing of them is built.
install_sources() {
    folder=$1 list=$2
    rm -rf "$folder"
    mkdir -p "$folder"
    grep -v '^#' "$list" | while read -r address hash; do
        file="$folder/$(basename "$address")"
        curl --fail --location --silent --show-error --retry 3 --max-time 120 \
            --output "$file" "$address" || return 1
        [ "$(digest <"$file")" = "$hash" ] || { echo "$address has another hash"; return 1; }
        tar -xzf "$file" -C "$folder" && rm "$file" || return 1
    done
}

install_suites() {
    install_sources "$tools/suites-src" "$here/suites.txt" &&
        install_python "$tools/suites" "$here/requirements-clients.txt" "$here/requirements-suites.txt"
}

# The packages that a lock file names, in a folder of their own.
install_npm() {
    folder=$1 from=$2
    mkdir -p "$folder"
    cp "$from/package.json" "$from/package-lock.json" "$folder/"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
}

install_anvil() {
    mkdir -p "$tools/bin"
    install_npm "$tools/npm" "$here" || return 1
    # The binary itself: the package's own launcher costs a start of Node. The lock file knows the
    # one for Linux x86_64; elsewhere an anvil on the PATH has to do.
    binary=$(echo "$tools"/npm/node_modules/@foundry-rs/anvil-*/bin/anvil)
    if [ -f "$binary" ]; then chmod +x "$binary"; else binary=$(command -v anvil); fi ||
        { echo "the lock file has no anvil for this machine; put anvil 1.7.1 on the PATH"; return 1; }
    ln -sf "$binary" "$tools/bin/anvil"
    "$tools/bin/anvil" --version
}

# Built in a folder of its own, which is not kept: nothing else shares its dependencies.
install_cargo() {
    CARGO_TARGET_DIR="$tools/build-$1" cargo install --locked --version "$2" --root "$tools" "$1" ||
        return 1
    rm -rf "$tools/build-$1"
}

setup() {
    case $1 in
    anvil)
        need_node
        part anvil "anvil and the stock Node client" \
            "$(cat "$here/package.json" "$here/package-lock.json" | digest)" install_anvil
        ;;
    x402)
        need_node
        python=$(find_python)
        part x402 "the stock x402 clients for Node" \
            "$(cat "$here/x402/package.json" "$here/x402/package-lock.json" | digest)" \
            install_npm "$tools/x402" "$here/x402"
        part x402-python "the stock x402 client for Python" \
            "$({ cat "$here/x402/requirements.txt" && "$python" --version && echo "$tools"; } | digest)" \
            install_python "$tools/x402-python" "$here/x402/requirements.txt"
        ;;
    agents)
        need_node
        python=$(find_python)
        part agents-npm "the Vercel AI SDK" \
            "$(cat "$here/agents/package.json" "$here/agents/package-lock.json" | digest)" \
            install_npm "$tools/agents-npm" "$here/agents"
        part agents "the stock MCP client, LangChain and llm (about 50 MB)" \
            "$({ cat "$here/agents/requirements.txt" && "$python" --version && echo "$tools"; } | digest)" \
            install_python "$tools/agents" "$here/agents/requirements.txt"
        ;;
    aider)
        python=$(find_older_python) || {
            [ -n "$everything" ] || fail "aider needs Python 3.10, 3.11 or 3.12; none was found"
            say "aider: LEFT OUT, it needs Python 3.10, 3.11 or 3.12; its test will fail"
            return
        }
        part aider "aider (about 100 MB, half a gigabyte unpacked)" \
            "$({ cat "$here/aider/requirements.txt" && "$python" --version && echo "$tools"; } | digest)" \
            install_python "$tools/aider" "$here/aider/requirements.txt"
        ;;
    codex)
        need_node
        part codex "Codex (about 170 MB, almost half a gigabyte unpacked)" \
            "$(cat "$here/codex/package.json" "$here/codex/package-lock.json" | digest)" \
            install_npm "$tools/codex" "$here/codex"
        ;;
    peers)
        need_node
        python=$(find_python)
        part peers-npm "Portkey's gateway" \
            "$(cat "$here/peers/package.json" "$here/peers/package-lock.json" | digest)" \
            install_npm "$tools/peers-npm" "$here/peers"
        part peers "LiteLLM's gateway (about 720 MB)" \
            "$({ cat "$here/peers/requirements.txt" && "$python" --version && echo "$tools"; } | digest)" \
            install_python "$tools/peers" "$here/peers/requirements.txt"
        ;;
    model | clients | openrouter | schemathesis)
        python=$(find_python)
        case $1 in
        model) what="llama.cpp server and SmolLM2-135M (about 130 MB)" ;;
        clients) what="the stock Python clients" ;;
        openrouter) what="OpenRouter's stock Python client" ;;
        schemathesis) what="schemathesis" ;;
        esac
        wanted=$({ cat "$here/requirements-$1.txt" && "$python" --version && echo "$tools"; } | digest)
        part "$1" "$what" "$wanted" install_python "$tools/$1" "$here/requirements-$1.txt"
        ;;
    suites)
        python=$(find_python)
        wanted=$({ cat "$here"/requirements-{clients,suites}.txt "$here/suites.txt" && "$python" --version && echo "$tools"; } | digest)
        part suites "the stock Python clients' own tests" "$wanted" install_suites
        ;;
    slither)
        python=$(find_python)
        wanted=$({ cat "$here/requirements-slither.txt" && "$python" --version && echo "$tools"; } | digest)
        part slither "slither, the contracts' linter" "$wanted" \
            install_python "$tools/slither" "$here/requirements-slither.txt"
        ;;
    deny)
        part deny "cargo-deny $cargo_deny_version (a few minutes)" "$cargo_deny_version" \
            install_cargo cargo-deny "$cargo_deny_version"
        ;;
    fuzz)
        part fuzz "cargo-fuzz $cargo_fuzz_version (a minute)" "$cargo_fuzz_version" \
            install_cargo cargo-fuzz "$cargo_fuzz_version"
        ;;
    *) fail "unknown part '$1'; the parts are: anvil model clients suites openrouter schemathesis slither x402 agents aider codex peers deny fuzz" ;;
    esac
}

mkdir -p "$tools/stamps"
# Environments remember where they are; a .tools that is a link (of a second worktree) is the place
# it points to, or each worktree would install it anew under the others.
tools=$(cd "$tools" && pwd -P)
everything=
[ $# -gt 0 ] || { everything=yes && set -- anvil model clients suites openrouter schemathesis x402 agents aider codex; }
for each in "$@"; do setup "$each"; done
