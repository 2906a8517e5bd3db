#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put Debian's Chromium, and the packages that it needs but this machine does not have, where
# tests/browser finds them: in the user's cache directory. Install nothing. Exit with 77 if this
# machine cannot fetch Debian packages at all, and with 1 if a package cannot be fetched.
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
