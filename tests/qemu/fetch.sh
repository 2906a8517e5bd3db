#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put QEMU 10 (Debian's backports) and QEMU 7.2 (Debian 12) where tests/qemu finds
# them, in a directory of the user's: nothing is installed. Asks apt, with lists and
# configuration of its own, so that the machine's are left alone.
set -eu

into=${SNPCERTS_QEMU:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/qemu}
[ -e "$into/10/complete" ] && [ -e "$into/7.2/complete" ] && exit 0
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[.*\] \)\?\([^ ]*\) .*/\2/p' \
	/etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
	grep -m 1 'debian/*$') || { echo "this machine's apt names no Debian mirror" >&2; exit 1; }
[ -f "$keyring" ] || { echo "no $keyring" >&2; exit 1; }

apt=$into/apt
mkdir -p "$apt/lists/partial" "$apt/parts"
for suite in bookworm bookworm-backports; do
	echo "deb [signed-by=$keyring] $mirror $suite main"
done >"$apt/sources"
cat >"$apt/conf" <<END
Dir::Etc::SourceList "$apt/sources";
Dir::Etc::SourceParts "$apt/parts";
Dir::State::Lists "$apt/lists";
Dir::State::Status "/var/lib/dpkg/status";
Debug::NoLocking "1";
Dir::Cache "$apt";
Acquire::Languages "none";
APT::Sandbox::User "root";
END
export APT_CONFIG="$apt/conf"
apt-get -qq update

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
