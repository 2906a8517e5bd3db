#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put QEMU 11 (from Debian 13's backports), QEMU 10 (from Debian 12's), QEMU 7.2 (Debian 12),
# libvirt (Debian 13) and the compilers of AppArmor's and SELinux's rules where tests/qemu finds
# them: in the user's cache directory. Install nothing. Exit with 77 if this machine cannot fetch
# Debian packages at all, and with 1 if a package cannot be fetched.
set -eu

into=${SNPCERTS_QEMU:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/qemu}
. "$(dirname "$0")/../debian.sh"

missing() { ! [ -e "$into/$1/complete" ]; }

# fetch DIRECTORY SUITE SERIES PACKAGE [MORE...]: unpack the newest PACKAGE of a series and MORE
# packages of the suite, with those dependencies that are not in the status file $installed.
fetch() {
	missing "$1" || return 0
	there=$into/$1 suite=$2 series=$3 package=$4
	shift 4
	version=$(newest "$package" "$series")
	[ -n "$version" ] || { echo "Debian has no $package $series" >&2; exit 1; }
	rm -rf "$there" "$apt/archives"
	mkdir -p "$there" "$apt/archives/partial"
	apt-get -o "Dir::State::Status=$installed" -qq -y --no-install-recommends \
		--download-only -t "$suite" install "$package=$version" "$@" >/dev/null ||
		{ echo "cannot fetch $package $version" >&2; exit 1; }
	for deb in "$apt"/archives/*.deb; do dpkg -x "$deb" "$there"; done
	rm -rf "$apt/archives"
	echo "$version" >"$there/complete"
}

if missing 10 || missing 7.2 || missing confinement; then
	debian bookworm bookworm-backports
	installed=/var/lib/dpkg/status
	fetch 10 bookworm-backports 1:10 qemu-system-x86
	fetch 7.2 bookworm 1:7.2 qemu-system-x86
	fetch confinement bookworm 3 apparmor selinux-utils
fi
if missing 11 || missing libvirt; then
	debian trixie trixie-backports
	# With all dependencies, also the C library, because this machine's may be too old.
	installed=$apt/nothing-installed
	: >"$installed"
	fetch 11 trixie-backports 1:11 qemu-system-x86
	fetch libvirt trixie 11 libvirt-daemon-driver-qemu libvirt-daemon libvirt-clients
fi
