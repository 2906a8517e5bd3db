#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put QEMU 10 (Debian's backports) and QEMU 7.2 (Debian 12) where tests/qemu finds
# them, in a directory of the user's: nothing is installed. Asks apt, with lists and
# configuration of its own, so that the machine's are left alone.
set -eu

into=${SNPCERTS_QEMU:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/qemu}
[ -e "$into/10/complete" ] && [ -e "$into/7.2/complete" ] && exit 0
. "$(dirname "$0")/../debian.sh"
debian bookworm bookworm-backports

# fetch DIRECTORY SUITE: unpack the QEMU of a suite, with what it needs and this
# machine lacks.
fetch() {
	there=$into/$1
	[ -e "$there/complete" ] && return
	rm -rf "$there" "$apt/archives"
	mkdir -p "$there" "$apt/archives/partial"
	apt-get -qq -y --no-install-recommends --download-only -t "$2" \
		install qemu-system-x86 >/dev/null
	for deb in "$apt"/archives/*.deb; do dpkg -x "$deb" "$there"; done
	rm -rf "$apt/archives"
	: >"$there/complete"
}
fetch 10 bookworm-backports
fetch 7.2 bookworm
