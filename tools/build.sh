#!/usr/bin/env bash
# Builds the Go programs that the tests need, once, into a cache outside git, and prints the folder that holds them.
#
#   tools/build.sh control-plane         # what tools/control-plane runs: kube-apiserver, etcd, kubectl, ...
#   tools/build.sh kubelet kube-proxy    # single programs, of one Go module
#   PATH="$(tools/build.sh helm):$PATH"  # progress goes to stderr, the folder to stdout
#
# The folder's name is a hash of everything that decides its binaries, so a changed version never meets an old binary.
# Each Go module has a folder of its own, so that a change to one leaves the binaries of the others.
set -euo pipefail

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly TOOLS
readonly CONTROL_PLANE=(etcd kube-apiserver kube-controller-manager kube-scheduler kubectl)

say() { echo "build.sh: $*" >&2; }
die() { say "$*"; exit 1; }

usage() {
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  echo "Names: control-plane (${CONTROL_PLANE[*]}) kubeadm kubelet kube-proxy coredns helm kwok" >&2
  exit 2
}

# Sets MODULE (a folder beside this file) and PACKAGE (in that module) for the program $1.
locate() {
  case $1 in
    etcd) MODULE=kube PACKAGE=go.etcd.io/etcd/server/v3 ;;
    kube-apiserver | kube-controller-manager | kube-scheduler | kubelet | kube-proxy | kubeadm | kubectl)
      MODULE=kube PACKAGE=k8s.io/kubernetes/cmd/$1 ;;
    coredns) MODULE=coredns PACKAGE=. ;;
    helm) MODULE=helm PACKAGE=helm.sh/helm/v4/cmd/helm ;;
    kwok) MODULE=kwok PACKAGE=sigs.k8s.io/kwok/cmd/kwok ;;
    *) say "no program named '$1'"; usage ;;
  esac
}

# Versions that upstream's release scripts set at link time; without them kube-apiserver says v0.0.0 and clients refuse it.
version_flags() {
  local version
  case $1 in
    kube*)
      version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
      local package=k8s.io/component-base/version minor=${version#v1.}
      echo "-X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}" ;;
    helm)
      version=$(go list -m -f '{{.Version}}' helm.sh/helm/v4)
      echo "-X helm.sh/helm/v4/internal/version.version=$version" ;;
  esac
}

require_go() {
  local need have
  need=$(awk '$1 == "go" {print $2}' go.mod)
  command -v go >/dev/null || die "needs Go $need or newer to build $1, and there is no 'go' in PATH"
  have=$(go env GOVERSION)
  have=${have#go}
  [[ $(printf '%s\n' "$need" "$have" | sort -V | head -n 1) == "$need" ]] ||
    die "needs Go $need or newer to build $1, and 'go' in PATH is $have (GOTOOLCHAIN=auto lets it fetch a newer one)"
}

build() {
  local name=$1 started=$SECONDS
  locate "$name"
  require_go "$name"
  say "building $name (the first time takes minutes)"
  # Under a temporary name until it is whole: an interrupted build must not look like a finished one.
  CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $(version_flags "$name")" -o "$BIN/.$name.partial" "$PACKAGE" >&2 ||
    die "$name did not build; see the message above"
  mv "$BIN/.$name.partial" "$BIN/$name"
  say "built $name in $((SECONDS - started)) s"
}

missing() {
  local name
  for name in "$@"; do [[ -x $BIN/$name ]] || echo "$name"; done
}

names=()
for argument in "$@"; do
  case $argument in
    control-plane) names+=("${CONTROL_PLANE[@]}") ;;
    *) locate "$argument"; names+=("$argument") ;;
  esac
done
((${#names[@]})) || usage

modules=$(for name in "${names[@]}"; do locate "$name"; echo "$MODULE"; done | sort -u)
[[ $modules != *$'\n'* ]] || die "these programs are of different Go modules, each with a folder of its own: ask one by one"
cd "$TOOLS/$modules"
key=$( (cat ./* && declare -f version_flags build && uname -sm) | sha256sum | cut -c1-12)
BIN=$(realpath -m "${SPINRUN_CACHE:-$HOME/.cache/spinrun}")/$modules-$key
readonly BIN

if [[ $(missing "${names[@]}") ]]; then
  mkdir -p "$BIN"
  exec 9>"$BIN/.lock"
  flock -n 9 || { say "waiting for another build"; flock 9; }
  # Looked at again under the lock: the other build may have made them. The compiler must not inherit the lock.
  for name in $(missing "${names[@]}"); do build "$name" 9>&-; done
fi
echo "$BIN"
