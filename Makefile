# SPDX-License-Identifier: GPL-2.0-or-later
#
# make run     install what is needed, build the series, boot a guest with the
#              mechanisms on and show what they did
# make check   all tests
# make help    the other targets

PREFIX  ?= /usr/local
DESTDIR ?=
TO      ?=
SEED    ?=
ENTRIES ?=
TIERS   := series unit guest libvirt lab asan

.PHONY: run check bench build build-base build-asan tree export series \
        series-check stat rebase rehearse install docs clean help bootstrap \
        bootstrap-build lab fuzz \
        $(addprefix check-,$(TIERS))

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '3,6p'
	@echo 'make build | build-base | build-asan   one variant of QEMU'
	@echo 'make check-TIER                        $(TIERS)'
	@echo 'make lab                               a shell in an emulated host with KVM and VFIO'
	@echo 'make fuzz SECONDS=N                    the generic fuzzer on our devices (needs clang)'
	@echo 'make bench                             benchmarks, report in build/bench/index.html'
	@echo 'make tree | export | series            edit cycle: see docs/developing.rst'
	@echo 'make series-check | stat               check and measure the patches'
	@echo 'make rehearse TO=tag-or-directory      try the series on another base'
	@echo 'make rebase TO=tag-or-directory        move the series to another base'
	@echo 'make install PREFIX=$(PREFIX) DESTDIR= install the series build'
	@echo 'make docs | clean'

bootstrap:
	@scripts/bootstrap

# where nothing can be installed, what is not used must not stop a build
bootstrap-build:
	@scripts/bootstrap build

run:
	@scripts/bootstrap build guest
	@scripts/build series
	@tests/guest/demo.py

check: bootstrap
	@scripts/check

$(addprefix check-,$(TIERS)): check-%: bootstrap
	@scripts/check $*

build: bootstrap-build
	@scripts/build series

build-base: bootstrap-build
	@scripts/build base

build-asan: bootstrap-build
	@scripts/build asan

lab:
	@scripts/bootstrap build guest
	@scripts/build series
	@tests/lab/shell

fuzz:
	@test -n '$(SECONDS)' || { echo 'say how long each entry runs: make fuzz SECONDS=600' >&2; exit 2; }
	@scripts/bootstrap build fuzz
	@scripts/build fuzz
	@scripts/fuzz $(if $(SEED),--seed '$(SEED)') '$(SECONDS)' $(ENTRIES)

bench: bootstrap
	@scripts/build base
	@scripts/build series
	@tests/bench/run

tree: bootstrap-build
	@scripts/fetch-base
	@scripts/series prepare

export:
	@scripts/series export

series: tree
	@scripts/series series

series-check: tree
	@scripts/bootstrap check
	@scripts/series check

stat:
	@scripts/series stat

rehearse rebase:
	@test -n '$(TO)' || { echo 'say onto what: make $@ TO=v11.0.0 or TO=/dir' >&2; exit 2; }
	@$(MAKE) --no-print-directory tree
	@scripts/series $@ '$(TO)'

# not after build: as root it would build as root
install:
	@scripts/install '$(PREFIX)' '$(DESTDIR)'

docs:
	@scripts/bootstrap docs
	@scripts/build-docs

clean:
	rm -rf build/out build/out-asan build/out-fuzz build/fuzz build/base/out build/report build/bench build/docs
