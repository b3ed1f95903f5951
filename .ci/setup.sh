#!/bin/sh
# Installs what the tests and benches need on Debian and, as root, makes the ordinary user they run as. Doing it twice does nothing.
set -eu

# command:package
needs="
newuidmap:uidmap iperf3:iperf3 dnsmasq:dnsmasq-base dig:bind9-dnsutils ping:iputils-ping tracepath:iputils-tracepath
traceroute:traceroute slirp4netns:slirp4netns pasta:passt rootlesskit:rootlesskit socat:socat rdisc6:ndisc6 udhcpc:udhcpc
dhclient:isc-dhcp-client busybox:busybox-static tcpdump:tcpdump ip:iproute2 ethtool:ethtool curl:curl sshd:openssh-server
ssh:openssh-client setpriv:util-linux jq:jq cc:build-essential pgrep:procps podman:podman runc:runc iptables:iptables
valgrind:valgrind nft:nftables mmdebstrap:mmdebstrap qemu-system-x86_64:qemu-system-x86 patchelf:patchelf pkg-config:pkg-config
openssl:openssl
"
PATH=$PATH:/usr/sbin:/sbin
export PATH

missing=
for need in $needs; do
    command -v "${need%%:*}" >/dev/null || missing="$missing ${need##*:}"
done
[ -e /usr/include/seccomp.h ] || missing="$missing libseccomp-dev"

# Real node components, once per machine.
build_components() {
    if ! "$(dirname "$0")/../tests/components/build.sh"; then
        echo "setup: WARNING: no node components, for the reason above: every test that wants them will say SKIPPED" >&2
    fi
}

# The disk of the whole-machine tests, likewise.
build_image() {
    if ! "$(dirname "$0")/../tests/vm/build-image.sh"; then
        echo "setup: WARNING: no virtual machine, for the reason above: its tests will say SKIPPED" >&2
    fi
}

if [ "$(id -u)" -ne 0 ]; then
    if [ -n "$missing" ] || [ ! -w /dev/net/tun ]; then
        echo "setup: as root, run: $0" >&2
        exit 1
    fi
    build_components
    build_image
    exit 0
fi

if [ -n "$missing" ]; then
    echo "setup: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # shellcheck disable=SC2086 # a list of packages
    apt-get install -q -y --no-install-recommends $missing
fi

# rltest has to have subordinate ids, whatever login.defs says.
if ! id rltest >/dev/null 2>&1; then
    useradd --create-home --shell /bin/sh rltest
    echo "setup: made the user rltest"
fi
for file in /etc/subuid /etc/subgid; do
    if ! grep -q '^rltest:' "$file" 2>/dev/null; then
        # Behind the last range that is taken.
        first=$(awk -F: 'BEGIN { next_free = 100000 } { end = $2 + $3; if (end > next_free) next_free = end } END { print next_free }' \
            "$file" 2>/dev/null || echo 100000)
        echo "rltest:$first:65536" >>"$file"
        echo "setup: gave rltest 65536 ids from $first in $file"
    fi
done

if [ ! -c /dev/net/tun ]; then
    mkdir -p /dev/net
    mknod /dev/net/tun c 10 200
    echo "setup: made /dev/net/tun"
fi
if [ "$(stat -c %a /dev/net/tun)" != 666 ]; then
    chmod 0666 /dev/net/tun
    echo "setup: /dev/net/tun has mode 0666 now, as on stock Debian"
fi

build_components
build_image
