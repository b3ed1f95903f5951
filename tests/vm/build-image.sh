#!/usr/bin/env bash
# Builds the stock machine of the whole-machine tests: Debian trixie as a disk for QEMU, with its kernel and initrd beside it.
#
#   build-image.sh              makes it if it is not there yet (half a minute), and prints its directory
#   build-image.sh --print-dir  prints the directory, or fails when it has not been made
#
# The directory holds disk.ext4, vmlinuz and initrd.img. It is named by the hash of the recipe, under $ROOTLESS_LAUNCH_VM, else
# ~/.cache/rootless-launch-vm, for root /var/cache/rootless-launch-vm, so that the user that tests run as can read it.
# No root needed where unshare(1) can map subordinate ids; nothing but Debian's packages is fetched.
set -euo pipefail

# What Debian's installer gives (systemd, a login over ssh) and, by Debian's names, what a node wants.
PACKAGES=linux-image-cloud-amd64,initramfs-tools,zstd,systemd,systemd-sysv,udev,kmod,dbus,dbus-user-session,libpam-systemd,login,passwd
PACKAGES+=,openssh-server,procps,iputils-ping,uidmap,iproute2,iptables,nftables,conntrack,ethtool
PACKAGES+=,containerd,crun,conmon,skopeo,fuse-overlayfs,containernetworking-plugins,busybox-static
MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

here=$(cd "$(dirname "$0")" && pwd)
name=vm-$(cat "$0" "$here/customize.sh" | sha256sum | cut -c1-16)
system=/var/cache/rootless-launch-vm
if [ "$(id -u)" -eq 0 ]; then
    cache=$system
    as_root_of_the_image=
else
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/rootless-launch-vm
    as_root_of_the_image='unshare --user --map-root-user --map-auto'
fi
cache=${ROOTLESS_LAUNCH_VM:-$cache}
# What root has built serves everybody.
for image in "$cache/$name" "$system/$name"; do
    if [ -e "$image/disk.ext4" ]; then
        echo "$image"
        exit
    fi
done
if [ "${1-}" = --print-dir ]; then
    echo "the virtual machine's image has not been made: run tests/vm/build-image.sh" >&2
    exit 1
fi
image=$cache/$name

mkdir -p "${image%/*}"
work=$(mktemp -d "$image.XXXXXX")
trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=apt --include="$PACKAGES" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --customize-hook="$here/customize.sh \"\$1\"" \
    trixie "$work/root.tar" "$MIRROR" >&2
# The files keep their owners on the way into the disk, which takes somebody who may be all of them.
$as_root_of_the_image sh -euc '
    cd "$1"
    mkdir root
    tar --numeric-owner -xf root.tar -C root --exclude "./dev/*"
    cp root/boot/vmlinuz-* vmlinuz
    cp root/boot/initrd.img-* initrd.img
    mke2fs -q -t ext4 -L root -d root disk.ext4 4G
    rm -rf root root.tar
' sh "$work" >&2
chmod 0755 "$work"
chmod 0644 "$work"/*
# Whole or not there at all, whoever builds at the same time.
mv -T "$work" "$image" 2>/dev/null || [ -e "$image/disk.ext4" ]
echo "$image"
