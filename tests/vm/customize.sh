#!/bin/sh
# What build-image.sh makes of a fresh Debian in $1: an ordinary user, the tests' way in, and nothing that only costs time at boot.
# Nothing here does what the product's `check` asks root for: the tests do that.
set -eu
root=$1

chroot "$root" useradd --create-home --shell /bin/bash ann
chroot "$root" passwd --quiet --delete root

echo vm >"$root/etc/hostname"
echo 'LABEL=root / ext4 rw,noatime 0 1' >"$root/etc/fstab"
cat >"$root/etc/systemd/network/lan.network" <<END
[Match]
Name=en* eth*
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
END
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"

# The tests' files come on the second disk, as a tar archive of /; a line on the serial port says that the machine is up.
cat >"$root/etc/systemd/system/vm-payload.service" <<END
[Unit]
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/tar -xf /dev/vdb -C / --keep-directory-symlink
END
cat >"$root/etc/systemd/system/vm-ready.service" <<END
[Unit]
After=ssh.service vm-payload.service dbus.service systemd-logind.service systemd-user-sessions.service systemd-networkd.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'cat /proc/sys/kernel/random/boot_id >/dev/virtio-ports/ready'
END
for unit in vm-payload vm-ready; do
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s "../$unit.service" "$root/etc/systemd/system/multi-user.target.wants/"
done
chroot "$root" systemctl --quiet enable systemd-networkd.service
chroot "$root" systemctl --quiet disable systemd-networkd-wait-online.service
chroot "$root" systemctl --quiet set-default multi-user.target
# Debian's own containerd is root's; ours takes only its programs. The rest is housekeeping.
chroot "$root" systemctl --quiet mask containerd.service getty@tty1.service serial-getty@ttyS0.service apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service \
    systemd-update-done.service ldconfig.service systemd-journal-catalog-update.service

# An archive of what `check` may tell root to install: the machine of the tests reaches no other.
chroot "$root" sh -euc '
    mkdir /srv/debs
    cd /srv/debs
    for package in uidmap containerd runc crun iptables containernetworking-plugins; do
        apt-get -qq download "$package" >&2
        apt-cache show --no-all-versions "$package" | sed "s|^Filename: .*/|Filename: ./|"
        echo
    done >Packages
    for file in *%3a*.deb; do
        mv "$file" "$(echo "$file" | sed "s/_[0-9]*%3a/_/")"
    done
    echo "deb [trusted=yes] file:/srv/debs ./" >/etc/apt/debs.list
'

# An emulated processor takes its time with an initrd that has every module.
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/vm"
printf 'virtio_pci\nvirtio_blk\next4\n' >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all
chroot "$root" apt-get clean
