# Postern. `make run` shows it at work, `make test` proves it.

GO      ?= go
CC      ?= cc
PREFIX  ?= /usr/local
# Where the shims look for the daemon; privileged ones look nowhere else.
SOCKET  ?= /run/postern/queue.sock
REMOTE_SOCKET ?= /run/postern/remote.sock
FUZZTIME ?= 30s
# How many packages are tested at a time: more than there are cores, because
# some wait for disks and clocks.
TESTP   ?= 4
# A compiler that collects garbage less often needs a third less time, and some
# hundred megabytes more.
COMPILE  = GOGC=400

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
HAVE_CC := $(shell command -v $(CC) 2>/dev/null)
# What is shipped names no folders of this machine. What is tested does, as go vet
# and go test build it: otherwise everything is compiled once more.
TRIMPATH = -trimpath
test crash: TRIMPATH =
LDFLAGS  = -s -w -X main.version=$(VERSION)
TWIN     = $(TRIMPATH) -ldflags '-s -w -X main.socketPath=$(1)'
CFLAGS  ?= -O2 -g0 -Wall -Wextra -Werror
SHIM     = $(CC) $(CFLAGS) -DPOSTERN_SOCKET_PATH='"$(SOCKET)"' -DPOSTERN_REMOTE_SOCKET_PATH='"$(REMOTE_SOCKET)"'

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT     = mvdan.cc/gofumpt@v0.12.0

# Debian packages of the real programs that the tests talk to.
DEPS = openssl gcc libc6-dev mailfront ucspi-tcp swaks daemontools e2fsprogs xfsprogs python3 libnet-ssleay-perl msmtp mutt s-nail curl dovecot-core opendkim python3-dkim python3-nacl libmail-dkim-perl clamav-daemon clamav-testfiles clamav-milter python3-milter spamd rspamd python3-grpcio python3-protobuf nftables iproute2
# Of Debian's postfix only smtp-sink is wanted and no mail server, so it is
# unpacked here and not installed.
POSTFIX = bin/debian/postfix
SINK    = LD_LIBRARY_PATH=$(POSTFIX)/usr/lib/postfix ldd $(POSTFIX)/usr/sbin/smtp-sink

.PHONY: build shims deps deps-sink test interop crash check bench fuzz run install man clean

build: bin/postern shims

bin/postern: FORCE
	$(COMPILE) $(GO) build $(TRIMPATH) -ldflags '$(LDFLAGS)' -o $@ ./cmd/postern

# The C shims where there is a C compiler, static where the system can; the Go
# twins beside them always, and in their place where there is none.
shims: FORCE
	$(GO) build $(call TWIN,$(SOCKET)) -o bin/qmail-queue-go ./cmd/qmail-queue
	$(GO) build $(call TWIN,$(REMOTE_SOCKET)) -o bin/qmail-remote-go ./cmd/qmail-remote
ifneq ($(HAVE_CC),)
	$(SHIM) -static -o bin/qmail-queue cmd/qmail-queue/c/qmail-queue.c 2>/dev/null || $(SHIM) -o bin/qmail-queue cmd/qmail-queue/c/qmail-queue.c
	$(SHIM) -static -o bin/qmail-remote cmd/qmail-remote/c/qmail-remote.c 2>/dev/null || $(SHIM) -o bin/qmail-remote cmd/qmail-remote/c/qmail-remote.c
else
	cp bin/qmail-queue-go bin/qmail-queue
	cp bin/qmail-remote-go bin/qmail-remote
endif

FORCE:

# Installs what is missing, and says what it could not install.
deps:
	@missing=; for p in $(DEPS); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	[ -z "$$missing" ] && exit 0; echo "installing$$missing"; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null || \
	{ echo "make deps: could not install$$missing: install them as root, the tests need them" >&2; exit 1; }
	@$(MAKE) --no-print-directory deps-sink

# smtp-sink, and the libraries that Debian's postfix depends on.
deps-sink:
	@fail() { echo "make deps: $$*; the tests need Debian's smtp-sink in $(POSTFIX)" >&2; exit 1; }; \
	lacks() { $(SINK) 2>&1 | grep -q 'not found\|No such file'; }; \
	lacks || exit 0; echo "unpacking postfix"; \
	rm -rf $(POSTFIX) $(POSTFIX).deb && mkdir -p $(POSTFIX) $(POSTFIX).deb && cd $(POSTFIX).deb || fail "cannot write to bin"; \
	get() { apt-get download -qq -o APT::Sandbox::User=root postfix; }; \
	get 2>/dev/null || { apt-get update -qq && get; } || fail "could not download the package postfix"; \
	cd $(CURDIR) && dpkg -x $(POSTFIX).deb/*.deb $(POSTFIX) || fail "could not unpack the package postfix"; \
	lacks || exit 0; libs=$$(dpkg-deb -f $(POSTFIX).deb/*.deb Depends | tr ',' '\n' | sed -n 's/^ *\(lib[^ :(|]*\).*/\1/p'); \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$libs >/dev/null || fail "could not install" $$libs "(install them as root)"; \
	! lacks || fail "smtp-sink lacks libraries: $$($(SINK) 2>&1 | grep 'not found')"

# The race detector makes everything ten times as slow, so with it (and -short)
# the tests below are made in part. Without it they are made whole. What go list
# compiles, go test finds; programs with the detector need not wait a second at
# their end.
WHOLE = TestStore|TestQueueRandom|TestQueueCrash|TestDamagedTables|TestEvasions|TestOrdinaryMail|TestOddHeads|TestHostileArchives|TestMemoryIsFlat|TestLeaks|TestNothingLeaks|TestCallsThatFail|TestFaultMatrix|TestWhatServersSay
WHOLE_OF = ./queue/queuetest ./queue/store/pebble ./filters/execban ./plugins/host ./plugins/milter ./plugins/qfilter ./plugins/spp ./queue ./queue/egress/smtp

test: deps build
	$(COMPILE) $(GO) vet ./...
	$(COMPILE) $(GO) list -race -test -deps -export ./... >/dev/null
	GORACE=atexit_sleep_ms=0 $(GO) test -race -short -vet=off -p $(TESTP) -timeout 20m ./...
	POSTERN_CRASH_TIME=90s $(GO) test -count=1 -vet=off -p $(TESTP) -timeout 20m -run '^($(WHOLE))$$' $(WHOLE_OF)
	@rm -rf bin/demo; bin/postern demo --once --dir bin/demo >bin/demo.log || { cat bin/demo.log bin/demo/postern.log; exit 1; }
	@echo "the demonstration ran to its end"

# Debian's mail servers take what we send: as root, unpacked and not installed,
# each in a mount namespace of its own.
PEERS = exim4-daemon-light opensmtpd
interop: deps
	@fail() { echo "make interop: $$*" >&2; exit 1; }; get() { apt-get download -qq -o APT::Sandbox::User=root $$1; }; \
	for p in $(PEERS); do \
	  [ -d bin/debian/$$p ] && continue; echo "unpacking $$p"; mkdir -p bin/debian/$$p.deb; \
	  (cd bin/debian/$$p.deb && { get $$p 2>/dev/null || { apt-get update -qq && get $$p; }; }) || fail "could not download the package $$p"; \
	  libs=$$(dpkg-deb -f bin/debian/$$p.deb/*.deb Depends | tr ',' '\n' | sed -n 's/^ *\(lib[^ :(|]*\).*/\1/p'); \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$libs >/dev/null || fail "could not install" $$libs; \
	  dpkg -x bin/debian/$$p.deb/*.deb bin/debian/$$p || fail "could not unpack the package $$p"; \
	done
	$(GO) test -count=1 -timeout 10m -tags interop -run '^(TestInterop|TestSmtpSink)$$' ./queue/egress/smtp

# Power cuts, kills and failing disks at length, as root: loop devices, ext4, xfs.
# Then the same crashes at every call of a simulated file system.
crash: deps build
	POSTERN_CRASH=1 $(GO) test -count=1 -v -timeout 60m ./queue/queuetest/crash
	POSTERN_SEEDS=10000 $(GO) test -count=1 -timeout 120m -run '^(TestStore|TestQueueRandom)$$' ./queue/queuetest ./queue/store/pebble

check: build
	@fmt="$$($(GO) run $(GOFUMPT) -l cmd filters pipeline queue plugins rules)"; [ -z "$$fmt" ] || { echo "gofumpt would change:"; echo "$$fmt"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

bench: build
	$(GO) test -run '^$$' -bench . -benchmem ./...

# Every fuzz target for FUZZTIME each.
fuzz:
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; \
	done

# The main job on the built-in demonstration, under ./run. ONCE=1 ends after the samples.
run: build
	bin/postern demo $(if $(ONCE),--once) --dir run

man: bin/postern
	bin/postern man --dir cmd/postern/man

# A program that is running, or that qmail starts this instant, is replaced by a
# rename: there is never none, never half of one, and no "text file busy".
REPLACE = install -m 755 $(1) $(2).new && mv -f $(2).new $(2)

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man8 $(DESTDIR)$(PREFIX)/share/man/man5
	$(call REPLACE,bin/postern,$(DESTDIR)$(PREFIX)/bin/postern)
	install -d $(DESTDIR)$(PREFIX)/lib/postern
	$(call REPLACE,bin/qmail-queue,$(DESTDIR)$(PREFIX)/lib/postern/qmail-queue)
	$(call REPLACE,bin/qmail-remote,$(DESTDIR)$(PREFIX)/lib/postern/qmail-remote)
	install -m 644 cmd/postern/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8/
	install -m 644 cmd/postern/man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5/

clean:
	rm -rf bin run
