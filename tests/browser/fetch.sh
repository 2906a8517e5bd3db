#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put Debian's Chromium, with what it needs and is not installed, where tests/browser finds it:
# in a directory of the user's; nothing is installed. Exits with 77 where this machine cannot
# fetch Debian packages at all, and with 1 where a package is gone.
set -eu

into=${SNPCERTS_BROWSER:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/browser}
. "$(dirname "$0")/../debian.sh"

[ -e "$into/chromium/complete" ] && exit 0
. /etc/os-release
suite=${VERSION_CODENAME:-trixie}
debian "$suite"
rm -rf "$into/chromium" "$apt/archives"
mkdir -p "$into/chromium" "$apt/archives/partial"
timeout 300 apt-get -qq -y --no-install-recommends --download-only install \
	chromium fonts-dejavu-core >/dev/null ||
	{ echo "cannot fetch chromium" >&2; exit 1; }
for deb in "$apt"/archives/*.deb; do dpkg-deb -x "$deb" "$into/chromium"; done
rm -rf "$apt/archives"
touch "$into/chromium/complete"
