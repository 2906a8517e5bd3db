#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put QEMU 11 (Debian's newest, from the backports of Debian 13), QEMU 10 (from those
# of Debian 12) and QEMU 7.2 (Debian 12) where tests/qemu finds them, in a directory of
# the user's: nothing is installed. Asks apt, with lists and configuration of its own,
# so that the machine's are left alone. Exits with 77 where this machine cannot fetch
# Debian packages at all, and with 1 where a package is gone.
set -eu

into=${SNPCERTS_QEMU:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/qemu}
. "$(dirname "$0")/../debian.sh"

missing() { ! [ -e "$into/$1/complete" ]; }

# fetch DIRECTORY SUITE [APT-OPTION...]: unpack the QEMU of a suite, with what it needs
# and this machine lacks.
fetch() {
	missing "$1" || return 0
	series=$1 suite=$2 there=$into/$1
	shift 2
	version=$(newest qemu-system-x86 "1:$series")
	[ -n "$version" ] || { echo "Debian has no qemu-system-x86 $series" >&2; exit 1; }
	rm -rf "$there" "$apt/archives"
	mkdir -p "$there" "$apt/archives/partial"
	apt-get "$@" -qq -y --no-install-recommends --download-only -t "$suite" \
		install "qemu-system-x86=$version" >/dev/null ||
		{ echo "cannot fetch qemu-system-x86 $version" >&2; exit 1; }
	for deb in "$apt"/archives/*.deb; do dpkg -x "$deb" "$there"; done
	rm -rf "$apt/archives"
	echo "$version" >"$there/complete"
}

if missing 10 || missing 7.2; then
	debian bookworm bookworm-backports
	fetch 10 bookworm-backports
	fetch 7.2 bookworm
fi
if missing 11; then
	debian trixie trixie-backports
	# With everything it needs, the C library too: this machine's may be too old for it.
	: >"$apt/nothing-installed"
	fetch 11 trixie-backports -o "Dir::State::Status=$apt/nothing-installed"
fi
