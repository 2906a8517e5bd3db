#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put promtool, from Debian's package of that name, where tests/monitoring finds it: in a directory
# of the user's; nothing is installed. Exits with 77 where this machine cannot fetch Debian
# packages at all, and with 1 where the package is gone.
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
