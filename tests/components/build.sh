#!/usr/bin/env bash
# Real node components for the tests, from the ordinary registries, into a cache outside the tree.
#
#   build.sh              makes what is not there yet; with everything there it says so and ends
#   build.sh --print-dir  prints the directory, or fails when it has not been made
#
# The directory holds
#   bin/     of Debian trixie: containerd containerd-shim-runc-v2 ctr runc crun etcd etcdctl conmon fuse-overlayfs skopeo busybox (static)
#            of Go modules:    kubelet flanneld crictl containerd-fuse-overlayfs-grpc; kube-apiserver kube-controller-manager kubeadm
#                              kubectl
#   bin2/    what stands in for some of bin/ in the second row of the matrix: containerd 2, its shim and ctr; CRI-O with pinns
#   cni/     Debian's plugins, and flannel
#   images/  pause.tar and busybox.tar, OCI archives named rootless-launch.test/{pause,busybox}:1
#   versions of all of it, one per line
#
# It is named by the hash of this directory, under $ROOTLESS_LAUNCH_COMPONENTS, else ~/.cache/rootless-launch-components, for root
# /var/cache/rootless-launch-components, so that the user that tests run as can read it. Each part has a directory of its own there, by
# the hash of its recipe (the function below, what it calls, and its wrapper): a change of one leaves the other parts as they are. To
# start anew, remove the cache.
set -euo pipefail
umask 022

SUITE=trixie
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
PACKAGES=(containerd runc crun fuse-overlayfs containernetworking-plugins etcd-server etcd-client conmon busybox-static skopeo)
PROGRAMS=(containerd containerd-shim-runc-v2 ctr crun etcd etcdctl etcdutl conmon fuse-overlayfs busybox skopeo)

HERE=$(cd "$(dirname "$0")" && pwd)
SYSTEM_CACHE=/var/cache/rootless-launch-components

main() {
    local key
    key=$(hash_of .)
    case "${1-}" in
    --print-dir) print_dir "$key" ;;
    '') build "$key" ;;
    *)
        echo "usage: $0 [--print-dir]" >&2
        exit 2
        ;;
    esac
}

# The hash of files of this directory: names and contents.
hash_of() { (cd "$HERE" && find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16); }

own_cache() {
    if [ -n "${ROOTLESS_LAUNCH_COMPONENTS-}" ]; then
        echo "$ROOTLESS_LAUNCH_COMPONENTS"
    elif [ "$(id -u)" -eq 0 ]; then
        echo "$SYSTEM_CACHE"
    else
        echo "$HOME/.cache/rootless-launch-components"
    fi
}

# What root has built serves everybody who has not named another cache.
print_dir() {
    local cache
    for cache in "$(own_cache)" "${ROOTLESS_LAUNCH_COMPONENTS:-$SYSTEM_CACHE}"; do
        if [ -e "$cache/$1/versions" ]; then
            echo "$cache/$1"
            return
        fi
    done
    echo "components: not built yet: run $HERE/build.sh" >&2
    exit 1
}

build() {
    local built
    if built=$(print_dir "$1" 2>/dev/null); then
        echo "components: all there, in $built"
        return
    fi
    check_tools
    CACHE=$(own_cache)
    mkdir -p "$CACHE/parts"
    exec 9>"$CACHE/lock"
    if ! flock -n 9; then
        echo "components: another build.sh is at work in $CACHE: waiting for it"
        flock 9
        if [ -e "$CACHE/$1/versions" ]; then
            echo "components: it has made $CACHE/$1"
            return
        fi
    fi

    local start=$SECONDS
    part debian
    local wrapper
    for wrapper in "$HERE"/*/go.mod; do
        part "$(basename "${wrapper%/go.mod}")"
    done
    part images
    assemble "$1"
    echo "components: done in $((SECONDS - start)) s: $CACHE/$1"
}

check_tools() {
    local missing=() need
    # command:package
    for need in mmdebstrap:mmdebstrap patchelf:patchelf cc:build-essential tar:tar flock:util-linux pkg-config:pkg-config; do
        command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
    done
    ! command -v pkg-config >/dev/null || pkg-config libseccomp || missing+=(libseccomp-dev)
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
    [ "$(id -u)" -eq 0 ] || command -v newuidmap >/dev/null || missing+=(uidmap)
    if [ "${#missing[@]}" -gt 0 ]; then
        echo "components: not installed; as root: apt-get install ${missing[*]}" >&2
    fi
    local go_needs go_has=go0
    go_needs=$(sed -n 's/^go //p' "$HERE"/*/go.mod | sort -V | tail -n 1)
    ! command -v go >/dev/null || go_has=$(go env GOVERSION)
    if [ "$(printf '%s\n' "go$go_needs" "$go_has" | sort -V | head -n 1)" != "go$go_needs" ]; then
        echo "components: Go $go_needs or later is needed in PATH (there is ${go_has/%go0/none}): https://go.dev/dl" >&2
        missing+=(go)
    fi
    [ "${#missing[@]}" -eq 0 ] || exit 1
}

# part NAME: runs make_NAME in a new directory unless one made by the same recipe is there. PARTS[NAME] says where it is.
part() {
    local name=$1 start=$SECONDS
    local directory
    directory=$CACHE/parts/$name-$(recipe "$name" | sha256sum | cut -c1-16)
    if [ -e "$directory/versions" ]; then
        echo "components: $name is there"
    else
        echo "components: making $name"
        # Where it will be used, as programs name their libraries by path.
        rm -rf "$directory"
        mkdir -p "$directory"
        "make_${name//-/_}" "$directory"
        chmod -R a+rX "$directory"
        mv "$directory/versions.new" "$directory/versions"
        echo "components: $name took $((SECONDS - start)) s"
    fi
    PARTS[$name]=$directory
}
declare -A PARTS

# What a part is made by: an edit of the text above and below does not matter to it, nor another part's function.
recipe() {
    declare -f "make_${1//-/_}" version_of in_wrapper go_build kubernetes
    case $1 in debian | images) declare -p SUITE PACKAGES PROGRAMS ;; esac
    [ ! -d "$HERE/$1" ] || hash_of "$1"
}

# Debian's programs. Those that want a newer C library than an older Debian has get the tree's own beside them.
make_debian() {
    local tree=$1/tree
    mkdir "$tree" "$1"/{bin,cni,lib}
    mmdebstrap --quiet --variant=extract --include="$(IFS=,; echo "${PACKAGES[*]}")" "$SUITE" - \
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR $SUITE main" \
        2> >(grep -v '^W: skipping' >&2 || true) |
        tar --extract --no-same-owner --directory="$tree" ./usr
    local name
    for name in "${PROGRAMS[@]}"; do
        cp "$tree/usr/bin/$name" "$1/bin/"
    done
    cp "$tree/usr/sbin/runc" "$1/bin/"
    cp "$tree"/usr/lib/cni/* "$1/cni/"
    local libraries=("$tree"/usr/lib/*-linux-gnu*)
    cp -L "${libraries[0]}"/*.so.* "$1/lib/"
    for name in crun runc conmon fuse-overlayfs skopeo; do
        # As DT_RPATH, which is for the libraries of the libraries too.
        patchelf --set-interpreter "$(echo "$1"/lib/ld-linux-*.so.*)" --force-rpath --set-rpath "$1/lib" "$1/bin/$name"
    done
    for name in "${PACKAGES[@]}"; do
        zcat "$tree/usr/share/doc/$name"/changelog.Debian*.gz | sed -n '1s/^\([^ ]*\) (\(.*\)) .*/\1 \2 (Debian)/p'
    done | sort -u >"$1/versions.new"
    rm -rf "$tree"
}

make_kubernetes() { kubernetes "$1" kubernetes kubelet; }

# What a node joins. Most packages are kubelet's, too, and come from Go's cache where that has been built just now.
make_kubernetes_control() { kubernetes "$1" kubernetes-control kube-apiserver kube-controller-manager kubeadm kubectl; }

# kubernetes DIRECTORY WRAPPER PROGRAM..
kubernetes() {
    local directory=$1 wrapper=$2 version
    shift 2
    version=$(version_of "$wrapper" k8s.io/kubernetes)
    local minor=${version#v1.}
    local stamp=k8s.io/component-base/version
    CGO_ENABLED=0 go_build "$wrapper" "$directory/bin/" \
        "-X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=${minor%%.*}" '' "${@/#/k8s.io/kubernetes/cmd/}"
    echo "$wrapper $version" >"$directory/versions.new"
}

make_flannel() {
    local module=github.com/flannel-io/flannel version
    version=$(version_of flannel $module)
    # Its UDP backend is C.
    CGO_ENABLED=1 go_build flannel "$1/bin/flanneld" "-X $module/pkg/version.Version=$version" '' $module
    echo "flannel $version, without Tencent Cloud" >"$1/versions.new"
}

make_cni_plugin() {
    local module=github.com/containernetworking/plugins version
    version=$(version_of cni-plugin $module)
    CGO_ENABLED=0 go_build cni-plugin "$1/cni/flannel" "-X $module/pkg/utils/buildversion.BuildVersion=$version" '' $module/plugins/meta/flannel
    echo "cni-plugin flannel of containernetworking/plugins $version" >"$1/versions.new"
}

make_cri_tools() {
    local module=sigs.k8s.io/cri-tools version
    version=$(version_of cri-tools $module)
    CGO_ENABLED=0 go_build cri-tools "$1/bin/" "-X $module/pkg/version.Version=$version" '' $module/cmd/crictl
    echo "cri-tools $version" >"$1/versions.new"
}

make_fuse_overlayfs() {
    local module=github.com/containerd/fuse-overlayfs-snapshotter/v2 version
    version=$(version_of fuse-overlayfs $module)
    CGO_ENABLED=0 go_build fuse-overlayfs "$1/bin/" '' '' $module/cmd/containerd-fuse-overlayfs-grpc
    echo "fuse-overlayfs-snapshotter $version" >"$1/versions.new"
}

make_containerd2() {
    local module=github.com/containerd/containerd/v2 version
    version=$(version_of containerd2 $module)
    CGO_ENABLED=0 go_build containerd2 "$1/bin2/" "-X $module/version.Version=$version" no_btrfs \
        $module/cmd/containerd $module/cmd/containerd-shim-runc-v2 $module/cmd/ctr
    echo "containerd2 $version" >"$1/versions.new"
}

make_cri_o() {
    local module=github.com/cri-o/cri-o version source
    version=$(version_of cri-o $module)
    CGO_ENABLED=1 go_build cri-o "$1/bin2/" '' \
        'containers_image_openpgp containers_image_ostree_stub exclude_graphdriver_btrfs btrfs_noversion seccomp' $module/cmd/crio
    source=$(in_wrapper cri-o go list -m -f '{{.Dir}}' $module)/pinns/src
    cc -std=c99 -Os -s -static -o "$1/bin2/pinns" "$source"/*.c
    echo "cri-o $version" >"$1/versions.new"
}

make_images() {
    mkdir "$1/images"
    "$HERE/images/build.sh" "${PARTS[debian]}/bin/busybox" "$1/images"
    (cd "$1/images" && sha256sum ./*.tar | sed 's,\(.*\)  \./\(.*\),image \2 sha256:\1,') >"$1/versions.new"
}

version_of() { in_wrapper "$1" go list -m -f '{{.Version}}' "$2"; }

in_wrapper() { (cd "$HERE/$1" && GOTOOLCHAIN=local GOFLAGS='' "${@:2}"); }

# go_build WRAPPER OUTPUT LDFLAGS TAGS PACKAGE..: CGO_ENABLED is the caller's.
go_build() {
    local wrapper=$1 output=$2 ldflags=$3 tags=$4
    shift 4
    mkdir -p "$(dirname "${output}x")"
    in_wrapper "$wrapper" nice -n 5 go build -trimpath -buildvcs=false -ldflags "-s -w $ldflags" -tags "$tags" -o "$output" "$@"
}

assemble() {
    local new=$CACHE/$1.new part
    rm -rf "$new"
    mkdir -p "$new"/{bin,bin2,cni,images}
    for part in "${!PARTS[@]}"; do
        for kind in bin bin2 cni images; do
            [ ! -d "${PARTS[$part]}/$kind" ] || cp -lf "${PARTS[$part]}/$kind"/* "$new/$kind/"
        done
        cat "${PARTS[$part]}/versions" >>"$new/versions"
    done
    sort -o "$new/versions" "$new/versions"
    rm -rf "${CACHE:?}/$1"
    mv "$new" "$CACHE/$1"
}

main "$@"
