# One entry point for people and CI; each target installs what it misses, or says which command does.
# BTFS_BIN, FILE, CHECK and SECONDS (a decoder, for fuzz) may be given on the command line.

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
export BTFS_BIN ?= $(abspath $(TARGET))/release/btfs
FILE ?=

.PHONY: build demo test bench fuzz lint install tools peers

build: tools
	$(CARGO) build --release --locked --bin btfs

demo: build
	$(BTFS_BIN) demo $(if $(FILE),--file $(FILE))

test: build lint peers
	$(CARGO) test --release --locked --workspace

bench: build peers
	$(CARGO) run --release --locked -p btfs-tests --bin bench -- $(if $(CHECK),--check)
	$(CARGO) run --release --locked -p btfs-storage --example million -- $(if $(CHECK),--check)

fuzz: tools
	$(CARGO) run --release --locked -p btfs-tests --bin fuzz -- all --seconds $(or $(SECONDS),60)

lint: tools
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings

install: tools
	$(CARGO) install --locked --path node

tools:
	@tests/peers/tools

peers:
	@tests/peers/install
