#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put headers and source of released kernels where tests/kernel finds them: in the user's cache
# directory. For each series, these are the newest linux-libc-dev (the headers for programs), its
# linux-headers-*-common (the kernel's own headers, for GHCB and guest messages), and the parts of
# linux-source that the tests compile or read. The kernel is under the GPL, so do not copy it out of
# that directory. Exit with 77 if this machine cannot fetch Debian packages at all, and with 1 if a
# package cannot be fetched.
set -eu

into=${SNPCERTS_KERNEL:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/kernel}
series=${SNPCERTS_KERNEL_SERIES:-7.2 7.3}
here=$(dirname "$0")
. "$here/../debian.sh"

fresh=$into/fetched
if [ -e "$fresh" ] && [ "$fresh" -nt "$0" ] && [ -z "$(find "$fresh" -mtime +0)" ]; then exit 0; fi
debian trixie-backports sid

# The parts of the source to keep. In the archive, their paths begin with a top directory.
members="arch/x86/kvm arch/x86/coco arch/x86/include drivers/virt/coco drivers/crypto/ccp
	include/linux include/crypto include/uapi include/kvm virt/kvm
	tools/testing/selftests/kvm tools/testing/selftests/kselftest.h tools/include
	tools/arch/x86/include tools/lib/rbtree.c lib/kstrtox.c lib/kstrtox.h"

newest_member=lib/kstrtox.c # missing in what earlier versions of this script fetched

# source_of VERSION DIRECTORY
source_of() {
	package=linux-source-$(echo "$1" | cut -d. -f1-2)
	(cd "$apt/archives" && apt-get -qq download "$package=$1") ||
		{ echo "cannot fetch $package=$1" >&2; exit 1; }
	mkdir -p "$2"
	deb=$(echo "$apt/archives/${package}"_*.deb)
	patterns=
	set -f
	for member in $members; do patterns="$patterns */$member"; done
	# A release may lack a member: tar then fails, but unpacks the others. The last line detects an
	# archive that was not unpacked at all.
	dpkg-deb --fsys-tarfile "$deb" |
		tar -xO --wildcards '*/linux-source-*.tar.xz' | xz -dcT0 |
		tar -x -C "$2" --strip-components=1 --wildcards --no-wildcards-match-slash \
			$patterns 2>/dev/null || true
	set +f
	rm -f "$deb"
	[ -f "$2/arch/x86/kvm/svm/sev.c" ] || { echo "$package has no sev.c" >&2; exit 1; }
}

for each in $series; do
	version=$(newest linux-libc-dev "$each")
	[ -n "$version" ] || { echo "Debian has no linux-libc-dev $each" >&2; exit 1; }
	there=$into/headers/$version
	if [ ! -e "$into/source/$version/complete" ] || [ ! -e "$into/source/$version/$newest_member" ]; then
		rm -rf "$into/source/$version"
		source_of "$version" "$into/source/$version"
		: >"$into/source/$version/complete"
	fi
	[ -e "$there/complete" ] && continue
	upstream=${version%%-*}
	common=$(apt-cache search --names-only "^linux-headers-$upstream\\+deb[0-9]+-common$" |
		cut -d' ' -f1 | sort -V | tail -n 1)
	[ -n "$common" ] || { echo "Debian has no linux-headers-$upstream-common" >&2; exit 1; }
	rm -rf "$there"
	unpack "linux-libc-dev=$version" "$there/user"
	unpack "$common" "$there/kernel"
	: >"$there/complete"
done
touch "$fresh"
