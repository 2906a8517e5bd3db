#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put promtool, from Debian's package of that name, where tests/monitoring finds it: in the user's
# cache directory. Install nothing. Exit with 77 if this machine cannot fetch Debian packages at
# all, and with 1 if the package cannot be fetched.
set -eu

into=${SNPCERTS_MONITORING:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/monitoring}
. "$(dirname "$0")/../debian.sh"

[ -e "$into/promtool/complete" ] && exit 0
debian trixie
version=$(newest promtool 2)
[ -n "$version" ] || { echo "Debian has no promtool 2" >&2; exit 1; }
rm -rf "$into/promtool"
unpack "promtool=$version" "$into/promtool"
touch "$into/promtool/complete"
