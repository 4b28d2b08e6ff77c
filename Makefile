SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help build demo dev dev-stop test soak race fuzz interop rotation kubernetes docs docs-test api check bench lint licenses release fmt clean

ROTATION_CALLS ?= 10000
INTEROP ?= full
SOAK_KILLS ?= 10
SOAK_FUZZ_TIME ?= 1h

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the plugin and the guard into bin/
	@scripts/build.sh bin/vault-plugin-secrets-ati
	@scripts/build.sh bin/ati-guard
	@echo bin/vault-plugin-secrets-ati bin/ati-guard

demo: ## Demonstrate the engine on a temporary dev server
	@scripts/demo.sh

dev: ## Start a dev server with the plugin (run again to rebuild and reload)
	@scripts/dev.sh

dev-stop: ## Stop the dev server
	@scripts/dev.sh stop

test: ## Run all tests that need only Go, including those on a real Vault server
	@vault=$$(scripts/vault-bin.sh) && VAULT_BIN=$$vault go test -count=1 -timeout 20m ./...
	@cd bench && go test -count=1 ./...
	@cd tools/release && go test -count=1 ./...

soak: ## Run the tests of faults, load, and hostile input in their long form, and print counts (needs what make interop needs)
	@SOAK_KILLS=$(SOAK_KILLS) FUZZ_TIME=$(SOAK_FUZZ_TIME) scripts/soak.sh

race: ## Run the unit tests under the race detector (needs a C compiler)
	@go test -race . ./ati ./internal/...

fuzz: ## Run all fuzz targets, one after the other, for FUZZ_TIME in total (default: 5m)
	@scripts/fuzz.sh

# With INTEROP=short, make interop runs the tests of what depends on the server: logins,
# Agent, the audit log, JWKS, and guards. make rotation then rotates behind a guard once by
# requests and once automatically, and once without a guard, to an HS256 key. INTEROP=guard
# runs only the tests of guards. Most tests wait most of the time, so more of them run in
# parallel than there are processors.
interop_full     = ^TestInterop
interop_short    = ^TestInterop((AppRole|AuditTrail|GettingStarted|Grants|JWKS|Kubernetes|Orchestrators|SandboxAgentEnv)$$|Guard_)
interop_guard    = ^TestInteropGuard_
rotation_full    = ^(TestGuardRotation.*|TestRotation)$$
rotation_short   = ^(TestGuardRotation(_Automatic)?|TestRotation)$$/HS256$$
rotation_guard   = ^TestGuardRotation
tests_of_interop = $(or $($(1)_$(INTEROP)),$(error INTEROP is $(INTEROP), but must be full, short, or guard))
go_test_interop  = go test -tags interop -count=1 -v -timeout 30m -run '$(call tests_of_interop,$(1))' ./test

interop: ## Run the tests with the real ATI proxy and ati-client (needs cargo, a C compiler, and Python 3)
	@vault=$$(scripts/vault-bin.sh) && parts=$$(scripts/interop-parts.sh) && set -a -o pipefail && eval "$$parts" && \
	VAULT_BIN=$$vault $(call go_test_interop,interop) -parallel 8 | grep --line-buffered -v '^=== '

rotation: ## Rotate the key under load, behind guards, also automatically, and blue/green with two proxies: zero failed requests
	@vault=$$(scripts/vault-bin.sh) && parts=$$(scripts/interop-parts.sh) && set -a -o pipefail && eval "$$parts" && \
	VAULT_BIN=$$vault ATI_ROTATION_CALLS=$(ROTATION_CALLS) $(call go_test_interop,rotation) -parallel 6 | grep --line-buffered -v '^=== '

kubernetes: ## Run the examples on a real Kubernetes API server and operator (needs what make interop needs, OpenBao, and etcd or Debian)
	@vault=$$(scripts/vault-bin.sh) && parts=$$(scripts/interop-parts.sh && scripts/kubernetes-parts.sh) && set -a -o pipefail && eval "$$parts" && \
	VAULT_BIN=$$vault go test -tags interop,kubernetes -count=1 -v -timeout 10m -run '^TestKubernetes$$' -parallel 8 ./test | grep --line-buffered -v '^=== '

docs: ## Build the site into bin/site, and check its links (needs Python 3.11 or later with pip)
	@scripts/docs.sh

docs-test: ## Run the commands in the documents on a real Vault server (needs openssl, and OpenBao or pip)
	@vault=$$(scripts/vault-bin.sh) && VAULT_BIN=$$vault go test -tags docs -run '^TestDocs' -count=1 ./test

api: ## Write docs/api.md from the path schemas and responses of a real server
	@vault=$$(scripts/vault-bin.sh) && UPDATE=1 VAULT_BIN=$$vault go test -tags docs -run '^TestDocsAPI$$' -count=1 ./test

bench: ## Run the benchmarks, including those on real servers, and write docs/performance.md (about 20 minutes; needs what make interop needs)
	@scripts/bench.sh

check: lint ## Run lint, unit tests, and documentation checks (before each commit; under a minute)
	@go test -count=1 . ./ati ./internal/... ./tools/...
	@cd tools/release && go test -count=1 ./...
	@go test -count=1 -tags docs -run '^Test(Assurance|Compatibility|Examples_NameTheirTest|ThirdPartyLicenses|ErrorsPage|DocsLinks)' ./test

lint: ## Run gofmt, go vet, staticcheck, revive, the word list and govulncheck
	@scripts/lint.sh

licenses: ## Write THIRD_PARTY_LICENSES.md, the licenses of the modules linked into the plugin and the guard
	@text=$$(go -C tools/release run -buildvcs=false . licenses -root ../..) && printf '%s\n' "$$text" >THIRD_PARTY_LICENSES.md

release: ## Build a release into dist/ (VERSION=v1.2.3, PLATFORMS="linux/amd64 …" or host, RELEASE_SIGN=command)
	@scripts/release.sh

fmt: ## Format the Go files
	@gofmt -w $$(git ls-files '*.go')

clean: dev-stop ## Stop the dev server and remove bin/ and dist/
	@rm -rf bin dist
