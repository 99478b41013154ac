# One recipe equals CI: `make test`. Bare `make` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Steps are ordered from quick to slow, and cargo already uses every core.
.NOTPARALLEL:

CARGO ?= cargo
SETUP := tests/tools/setup.sh
# One line per step, with the time it is at.
step = @printf '\n\033[1m== %s  [%s]\033[0m\n' "$(1)" "$$(date +%T)"

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | \
	  while IFS=$$'\t' read -r name what; do printf '  make %-16s %s\n' "$$name" "$$what"; done

## --- what people run -----------------------------------------------------------------------

.PHONY: demo
demo: ## Three sellers, a real model, a chain, one paid answer; ONCE=1 exits after the story
	$(call step,Setting up the chain and the model server)
	@$(SETUP) anvil model
	$(call step,Building (about four minutes the first time))
	@$(CARGO) build --locked --release -p farthing-tests --bin demo
	@$(CARGO) run --quiet --locked --release -p farthing-tests --bin demo -- $(if $(filter-out 0,$(ONCE)),--once)

.PHONY: dev
dev: ## A development network that stays up: sellers, a buyer's gateway, a chain, mock upstreams
	@$(SETUP) anvil
	@$(CARGO) run --locked --release -p farthing-tests --bin devnet -- $(ARGS)

.PHONY: test
test: fmt-check lint test-rust doc contracts-check deny ## Everything CI checks
	$(call step,All checks passed)

.PHONY: bench
bench: ## Measure added latency, throughput and memory; writes docs/benchmarks.md
	@$(SETUP) anvil
	@$(CARGO) build --locked --release -p farthing-tests --bin bench --bin mock_upstream
	@$(CARGO) run --quiet --locked --release -p farthing-tests --bin bench -- --write $(ARGS)

.PHONY: bench-streams
bench-streams: ## Measure 2 000 streams at once: memory, delay and processor time of each; writes docs/benchmarks.md
	@$(SETUP) anvil
	@$(CARGO) build --locked --release -p farthing-tests --bin bench --bin mock_upstream
	@$(CARGO) run --quiet --locked --release -p farthing-tests --bin bench -- --write streams $(ARGS)

.PHONY: soak
soak: ## Ten minutes of mixed paid traffic: does anything grow? Writes docs/benchmarks.md; ARGS="--seconds 120"
	@$(SETUP) anvil
	@$(CARGO) build --locked --release -p farthing-tests --bin bench --bin mock_upstream
	@$(CARGO) run --quiet --locked --release -p farthing-tests --bin bench -- --write endure $(ARGS)

.PHONY: gas
gas: ## Measure the gas of deposits, claims and payments; writes docs/benchmarks.md
	@$(SETUP) anvil
	@$(CARGO) run --quiet --locked -p farthing-tests --bin gas -- --write

.PHONY: ledger
ledger: ## Measure signatures, the disk and the books by themselves; writes docs/benchmarks.md; RECEIPTS=1000000
	@$(CARGO) run --locked --release -p farthing-tests --bin ledger -- --write --receipts $(or $(RECEIPTS),1000000) $(ARGS)

.PHONY: sim
sim: ## Simulate a thousand sellers, one in five of them bad; writes docs/simulation.md
	@$(CARGO) run --locked --release -p farthing-tests --bin sim -- --write $(ARGS)

.PHONY: crowd
crowd: ## Measure what discovery costs with 10, 100 and 1 000 sellers; writes docs/benchmarks.md
	@$(CARGO) run --locked --release -p farthing-tests --bin crowd -- --write $(ARGS)

.PHONY: chaos
chaos: ## Let faults of every kind strike paid traffic and audit every book; FAULTS=1000
	@$(SETUP) anvil
	@$(CARGO) build --locked --release -p farthing-tests --bin chaos --bin seller --bin buyer
	@$(CARGO) run --quiet --locked --release -p farthing-tests --bin chaos -- --faults $(or $(FAULTS),1000) $(ARGS)

.PHONY: contracts
contracts: ## Build the contracts, refresh their artifacts and run their tests
	@protocol/contracts/build.sh
	@protocol/contracts/test.sh

.PHONY: fuzz
fuzz: ## Fuzz every decoder; FUZZ_SECONDS=60 each
	@$(SETUP) fuzz
	@tests/tools/fuzz.sh $(or $(FUZZ_SECONDS),60)

## --- what they are made of -----------------------------------------------------------------

.PHONY: tools
tools: ## Install the real parts of the tests into .tools/
	$(call step,Setting up the real parts of the tests)
	@$(SETUP) anvil model clients suites openrouter schemathesis x402 agents

.PHONY: fmt
fmt: ## Format the code
	@$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check: ## Check the format
	$(call step,Format)
	@$(CARGO) fmt --all --check

.PHONY: lint
lint: ## Clippy, warnings denied
	$(call step,Clippy)
	@$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings

.PHONY: test-rust
test-rust: tools ## The Rust tests, by cargo-nextest if it is installed
	$(call step,Tests)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  $(CARGO) nextest run --locked --workspace --all-features && \
	  $(CARGO) test --locked --workspace --all-features --doc; \
	else \
	  echo "(cargo-nextest is not installed; plain cargo test does. cargo install --locked cargo-nextest)"; \
	  $(CARGO) test --locked --workspace --all-features; \
	fi

.PHONY: doc
doc: ## Build the documentation, warnings denied
	$(call step,Documentation)
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --all-features --no-deps

.PHONY: contracts-check
contracts-check: ## Check that the contracts' artifacts rebuild identically, and run their tests
	$(call step,Contracts)
	@protocol/contracts/build.sh --check
	@$(SETUP) slither
	@protocol/contracts/lint.sh
	@protocol/contracts/test.sh

.PHONY: deny
deny: ## Check licences, sources, bans and (where the database can be had) advisories
	$(call step,Dependencies)
	@tests/tools/deny.sh

.PHONY: clean
clean: ## Remove build output and .tools/
	@$(CARGO) clean
	@rm -rf .tools
