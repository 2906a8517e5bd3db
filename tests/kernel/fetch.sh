#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put the headers of released kernels where tests/kernel finds them, in a directory
# of the user's: for each series the newest linux-libc-dev (what programs see) and
# linux-headers-*-common (the kernel's own, for GHCB and guest messages). Exits with
# 77 where this machine cannot fetch Debian packages at all, and with 1 where a
# package is gone.
set -eu

into=${SNPCERTS_KERNEL:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/kernel}
series=${SNPCERTS_KERNEL_SERIES:-7.2 7.3}
here=$(dirname "$0")
. "$here/../debian.sh"

fresh=$into/fetched
if [ -e "$fresh" ] && [ -z "$(find "$fresh" -mtime +0)" ]; then exit 0; fi
debian trixie-backports sid

for each in $series; do
	version=$(newest linux-libc-dev "$each")
	[ -n "$version" ] || { echo "Debian has no linux-libc-dev $each" >&2; exit 1; }
	there=$into/headers/$version
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
