#!/usr/bin/env bash
# build.sh BUSYBOX DIRECTORY: makes the images of the tests' pods, DIRECTORY/pause.tar and DIRECTORY/busybox.tar.
set -euo pipefail
umask 022
busybox=$1 directory=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/pause"
cc -Os -static -s -Wall -Wextra -Werror -o "$work/pause/pause" "$here/pause.c"
"$here/oci-archive.sh" rootless-launch.test/pause:1 "$work/pause" "$directory/pause.tar" /pause

root=$work/busybox
mkdir -p "$root"/{bin,dev,etc,home,proc,root,sys,var/www} "$root/usr"
install -d -m 1777 "$root"/{tmp,var/tmp}
ln -s ../bin "$root/usr/bin"
cp "$busybox" "$root/bin/busybox"
while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done < <("$busybox" --list)
printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/home:/bin/sh >"$root/etc/passwd"
printf '%s\n' root:x:0: nogroup:x:65534: >"$root/etc/group"
"$here/oci-archive.sh" rootless-launch.test/busybox:1 "$root" "$directory/busybox.tar" /bin/sh
