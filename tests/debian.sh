# SPDX-License-Identifier: Apache-2.0
# For the scripts that fetch Debian packages for tests: they source this file. apt runs with
# separate lists and configuration, so this machine's stay as they are, and nothing is installed.
# $into must name a directory that the user may write to. After `debian SUITE...`, apt knows the
# packages of these suites.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

debian() {
	command -v apt-get >/dev/null || { echo "this machine has no apt" >&2; exit 77; }
	mirror=$(sed -n 's/^URIs: *//p; s/^deb \(\[.*\] \)\?\([^ ]*\) .*/\2/p' \
		/etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
		grep -m 1 'debian/*$') ||
		{ echo "this machine's apt names no Debian mirror" >&2; exit 77; }
	[ -f "$keyring" ] || { echo "no $keyring" >&2; exit 77; }
	apt=$into/apt
	mkdir -p "$apt/lists/partial" "$apt/parts" "$apt/archives/partial"
	for suite in "$@"; do
		echo "deb [signed-by=$keyring] $mirror $suite main"
	done >"$apt/sources"
	cat >"$apt/conf" <<-END
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
}

# unpack PACKAGE=VERSION DIRECTORY
unpack() {
	(cd "$apt/archives" && apt-get -qq download "$1") ||
		{ echo "cannot fetch $1" >&2; exit 1; }
	mkdir -p "$2"
	dpkg-deb -x "$apt"/archives/"${1%%=*}"_*.deb "$2"
	rm -f "$apt"/archives/"${1%%=*}"_*.deb
}

# newest PACKAGE SERIES: the newest version of a series, e.g. 7.3 or 1:7.2
newest() {
	apt-cache madison "$1" | awk -v series="$2" '
		index($3, series) == 1 && substr($3, length(series) + 1, 1) ~ /[^0-9]/ { print $3 }
	' | sort -V | tail -n 1
}
