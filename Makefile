# Quadway: lab shows it, test proves it. Both run as root on Debian 12 or 13 with rustup's stable toolchain.

ROOT := $(CURDIR)/target/lab/root-trixie
PACKAGES := build-essential curl debian-archive-keyring ethtool iproute2 iputils-ping libssl-dev mmdebstrap openssl pkg-config \
    python3-venv sslscan tmux util-linux
GUEST_PACKAGES := $(PACKAGES) e2fsprogs qemu-system-x86 xz-utils
# `make lab CARGO_FLAGS=--release` plays with the fast binaries.
CARGO_FLAGS ?=
PROFILE := $(if $(findstring --release,$(CARGO_FLAGS)),release,debug)
LAB := target/$(PROFILE)/lab

.PHONY: help lab test guest bench fuzz campaign valgrind packages bpf root prometheus qat conformance tls-peers clean-lab

help:
	@echo 'make lab         build everything, play the demo in a lab of network namespaces, leave the lab up'
	@echo 'make test        format, lints, documentation and every test, also those that need namespaces'
	@echo 'make bench       the numbers of bench/README.md: the core, failover, many flows, an idle daemon, the packet path, crypto'
	@echo 'make fuzz        ten minutes (FUZZ_SECONDS) each of hostile site files, packets, requests and bundles'
	@echo 'make campaign    100,000 crypto operations on a simulated device under every fault; about five minutes'
	@echo 'make valgrind    a short campaign of the same under valgrind'
	@echo 'make guest       the tests that need more of a kernel than this machine may have, in a QEMU guest'
	@echo 'make bpf         the compiler and the linker that the eBPF programs need'
	@echo 'make root        the Debian 13 root that the lab uses where nft is older than 1.1.3'
	@echo 'make clean-lab   take the lab down, remove that root'

lab: root bpf
	cargo build --workspace $(CARGO_FLAGS)
	$(LAB) demo

# QUADWAY_MUST_RUN turns the skips of tests that find no nft or no root into failures.
# A browser is half a minute to install.
test: PACKAGES += chromium libnss3-tools
test: export QUADWAY_MUST_RUN = 1
test: export QUADWAY_NFT = $(shell tests/root/nft)
test: export RUSTDOCFLAGS = -D warnings
test: root bpf prometheus qat conformance
	cargo fmt --all --check
	cargo fmt --manifest-path ebpf/programs/Cargo.toml --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo doc --workspace --no-deps --document-private-items
	cargo check --manifest-path tests/fuzz/Cargo.toml --target-dir target
	cargo clippy --manifest-path ebpf/programs/Cargo.toml --all-targets --all-features -- -D warnings
	cargo test --manifest-path ebpf/programs/Cargo.toml
	cargo build --workspace
	cargo test --workspace
	$(MAKE) guest

# What the machine's own kernel may lack (8021q, crypto_user) is tried on Debian 13's, emulated, and so is whether its
# verifier takes the programs and what they do there; then what is left of an unconfirmed change when the power fails,
# and a tunnel whose packets the kernel seals.
guest: PACKAGES := $(GUEST_PACKAGES)
guest: export QUADWAY_NFT = $(shell tests/root/nft)
guest: root bpf
	tests/guest/build target/lab/guest
	tests/guest/run target/lab/guest sh -c 'for program; do "$$program" --nocapture || exit; done' each \
	    $$(tests/guest/program router-daemon trunk) $$(tests/guest/program ebpf golden) \
	    $$(tests/guest/program router-daemon crypto_user)
	tests/guest/run --disk target/lab/guest $$(tests/guest/program router-daemon reboot) --nocapture
	cargo build --quiet --package router-daemon --package tests --bins
	tests/guest/run target/lab/guest $$(tests/guest/program tests tunnels) --nocapture a_peer_without_mobike

bench: root bpf qat tls-peers
	cargo build --workspace --release
	cargo bench -p bench --bench compile
	target/release/failover
	target/release/flows
	target/release/idle
	target/release/testrun
	target/release/cache
	target/release/fastpath
	cargo run --release -p qat --example batch
	target/release/offload
	target/release/terminators

# On stable Rust, so without sanitizers: the code under test has no unsafe in it, or asserts every access.
FUZZ_SECONDS ?= 600
CORPUS := tests/fuzz/corpus/site_file
BUNDLES := tests/fuzz/corpus/bundle
REQUESTS := tests/fuzz/corpus/api_request
fuzz: packages bpf
	@command -v cargo-fuzz >/dev/null || { echo 'installing cargo-fuzz'; cargo install --locked cargo-fuzz; }
	mkdir -p $(CORPUS)
	cp config/examples/*.toml config/tests/bad/*.toml $(CORPUS)
	cd tests/fuzz && cargo fuzz run --sanitizer none site_file -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=60000 -timeout=20 -rss_limit_mb=4096
	cd tests/fuzz && cargo fuzz run --sanitizer none packet -- -max_total_time=$(FUZZ_SECONDS) -max_len=300
	mkdir -p $(REQUESTS)
	cp tests/fuzz/seeds/api_request/* $(REQUESTS)
	cd tests/fuzz && cargo fuzz run --sanitizer none api_request -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=20 -dict=requests.dict
	mkdir -p $(BUNDLES)
	printf '\000' | cat - router-daemon/src/bundle/format-1.tar > $(BUNDLES)/format-1
	cd tests/fuzz && cargo fuzz run --sanitizer none bundle -- -max_total_time=$(FUZZ_SECONDS) -max_len=20000 -timeout=20

campaign: packages
	QUADWAY_CAMPAIGN=100000 cargo test -p qat --test campaign -- --nocapture

# Some fifty times slower, and one thread at a time; so without the phases of what a library lacks, each of which starts an
# engine. What valgrind sees are the calls into C and what a device is given; a sanitizer of Rust's own is not in the stable
# toolchain. About four minutes.
valgrind: PACKAGES += valgrind
valgrind: packages
	QUADWAY_CAMPAIGN=1200 QUADWAY_SLOWER=50 valgrind --quiet --error-exitcode=9 --fair-sched=yes \
	    --suppressions=qat/valgrind.supp $$(tests/guest/program qat campaign) --nocapture under_any_fault

# What Debian lacks is installed, and said.
packages:
	@missing=$$(for package in $(PACKAGES); do \
	    dpkg-query --show --showformat='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; \
	done); \
	if [ -n "$$missing" ]; then \
	    echo "installing" $$missing; \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi

bpf:
	@ebpf/toolchain

# What the rules, the dashboards and the metrics themselves are tried with.
prometheus: packages
	@tests/root/prometheus target/lab/prometheus

# The bindings are what bindgen writes of Debian 13's headers; the libraries, what they are tried against.
qat: packages
	@qat/sys/regenerate --check
	@qat/sys/libraries target/qat/libraries

# What speaks TLS as nobody should, to see what becomes of it.
conformance: packages
	@tests/conformance/venv target/conformance

# Who ends TLS beside us, in a bench.
tls-peers: packages
	@tests/root/tls-peers target/lab/tls-peers

root: packages
	@tests/root/nft --recent || tests/root/build $(ROOT)

clean-lab:
	if [ -x $(LAB) ]; then $(LAB) down; fi
	rm -rf target/lab
