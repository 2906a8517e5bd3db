# SPDX-License-Identifier: Apache-2.0
"""A bare Debian system to install on: a root directory under an overlay, in namespaces of its own.

The files that ``fetch.sh`` unpacked do not change; all changes go into a directory of the test.
When a script ends, the processes that it has left behind are killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

FETCHED = Path(
    os.environ.get("SNPCERTS_PACKAGES")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "snpcerts/packages")
)
_ENTER = """
set -eu
root=$1 changes=$2 packages=$3 source=$4
mkdir -p "$changes/upper" "$changes/work" "$changes/merged"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$changes/upper,workdir=$changes/work" \
    "$changes/merged"
cd "$changes/merged"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mkdir -p run/packages run/source
mount --bind "$packages" run/packages
mount --bind "$source" run/source
mount -o remount,bind,ro run/source
for file in /etc/resolv.conf /etc/pip.conf "${SSL_CERT_FILE:-/nowhere}" "${PIP_CERT:-/nowhere}"; do
    if [ -e "$file" ]; then
        mkdir -p ".${file%/*}"
        cat "$file" >".$file"
    fi
done
shift 4
exec chroot . /usr/bin/env -i "$@"
"""


@dataclass(frozen=True)
class BareRoot:
    """One system. ``root`` is the fetched directory, and ``changes`` receives all changes to it."""

    root: Path
    changes: Path
    packages: Path
    source: Path

    def run(self, script: str, *, limit: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run a shell script as root, in /root; packages are in /run/packages.

        The sources are in /run/source, read-only.
        """
        passed = {
            name: value
            for name, value in os.environ.items()
            if name.lower().endswith("_proxy")
            or name in ("SSL_CERT_FILE", "PIP_CERT", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")
        }
        variables = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
            **passed,
        }
        words = [f"{name}={value}" for name, value in variables.items()]
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "sh"]
            + [str(each) for each in (self.root, self.changes, self.packages, self.source)]
            + [*words, "sh", "-c", f"cd /root\n{script}"],
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def at(self, path: str) -> Path:
        """Return the path outside the system of a file that was changed or created in it."""
        return self.changes / "upper" / path.lstrip("/")

    def remove(self) -> None:
        """Remove all changes."""
        shutil.rmtree(self.changes, ignore_errors=True)
