# SPDX-License-Identifier: Apache-2.0
"""The container image, built and run by Debian's buildah on a bare Debian 13.

The build asks no image registry. Its base image is the bare system itself, which has Python and
venv, as the Containerfile's own base image does. buildah isolates commands with a chroot, which
needs no kernel feature that is missing in some containers.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.packages.bare_root import FETCHED, BareRoot
from tests.packages.conftest import ROOT
from tests.sizes import FULL

CONTAINERFILE = ROOT / "packaging/image/Containerfile"
ANYBODY = "65534:65534"  # the user of the chart's mirror
_CANNOT_INSTALL = 75
_NO_NETWORK = re.compile(
    r"NewConnectionError|name resolution|Name or service not known|ConnectTimeout|Read timed out"
)
# Prints one line for each event, "@ NAME VALUE", and what the commands print.
_SCRIPT = """
exec 2>&1
tar --one-file-system -C / --exclude=./root --exclude=./var/cache -cf base.tar .
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq update &&
  apt-get -qq -y --no-install-recommends install buildah mount netavark; } >apt.log ||
    { tail apt.log; exit 75; }
set -e
# Keep the layers in a tmpfs: the bare system is an overlay, on which another one does not work.
mkdir -p /var/lib/containers
mount -t tmpfs tmpfs /var/lib/containers
printf '[storage]\\ndriver = "overlay"\\nrunroot = "/run/containers"\\n%s\\n' \\
    'graphroot = "/var/lib/containers/storage"' >/etc/containers/storage.conf
# Pass the present limits; otherwise buildah tries to raise them, which may be forbidden here.
limits=$(python3 -c '
import resource
for name in ("nofile", "nproc"):
    soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
    print(f"--ulimit={name}={soft}:{hard}")
')
buildah from --quiet --name base scratch
buildah add --quiet base base.tar /
rm base.tar
for name in SSL_CERT_FILE PIP_CERT PIP_INDEX_URL; do
    value=$(printenv "$name") && buildah config --env "$name=$value" base || :
done
buildah commit --quiet base localhost/python
buildah rm base
cd /run/source
buildah build $limits --isolation chroot --build-arg BASE=localhost/python \\
    --file packaging/image/Containerfile --tag localhost/snpcerts .
cd
buildah inspect --type image localhost/snpcerts | python3 -c '
import json, sys
print("@ config", json.dumps(json.load(sys.stdin)["OCIv1"]["config"]))
'
made=$(buildah from --quiet $limits localhost/snpcerts)
set +e
inside() { buildah run --isolation chroot "$@"; }
echo "@ version $(inside "$made" -- snpcerts --version)"
echo "@ user $(inside "$made" -- id -u)"
echo "@ agent $(inside "$made" -- snpcerts host sync --watch --log json 2>&1 | tr '\\n' ' ')"
echo "@ compilers $(inside "$made" -- sh -c 'command -v cc gcc c++ g++ clang tcc')"
inside --user @ANYBODY@ "$made" -- snpcerts mirror serve --listen 127.0.0.1:0 \\
    --database sqlite:////tmp/mirror.db >mirror.log 2>&1 &
url=$(timeout 180 tail -n +1 -f mirror.log | grep -o -m 1 'http://[^ ]*') || cat mirror.log
echo "@ health $(python3 -c '
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1] + "/healthz", timeout=60).read().decode())
' "$url")"
top=$(buildah mount "$made")
for place in root/.cache source base.tar; do
    [ ! -e "$top/$place" ] || echo "@ leftover $place"
done
find "$top/opt" "$top/tmp" -name '*.whl' -o -name 'http-v2' | sed 's/^/@ leftover /'
"""


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="builds an image, so runs only with SNPCERTS_FULL_TESTS=1")
def test_the_image_is_built_and_its_agent_and_mirror_start(tmp_path: Path) -> None:
    if not (FETCHED / "trixie").exists():
        pytest.skip("fetch.sh could not make a bare system of trixie")
    system = BareRoot(FETCHED / "trixie", tmp_path / "system", tmp_path, ROOT)
    try:
        made = system.run(_SCRIPT.replace("@ANYBODY@", ANYBODY), limit=900)
    finally:
        system.remove()
    skip_without_network(made)
    assert made.returncode == 0, made.stdout[-3000:]
    found = dict(re.findall(r"^@ (\w+) (.*)$", made.stdout, re.MULTILINE))
    config = json.loads(found["config"])
    command = [*config["Entrypoint"], *config["Cmd"]]
    assert command == ["snpcerts", "host", "sync", "--watch", "--log", "json"]
    assert found["version"].startswith("snpcerts, version ")
    user = re.findall(r"^USER (\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
    assert config.get("User", "") == "".join(user[-1:])
    assert found["user"] == "0"
    # The agent starts, but lacks the device that the chart in packaging/helm passes in.
    assert "/dev/sev: No such file or directory" in found["agent"]
    assert json.loads(found["health"]) == {"ok": True}
    assert found["compilers"] == ""
    assert found.get("leftover") is None


def skip_without_network(made: subprocess.CompletedProcess[str]) -> None:
    """Skip, with the reason, if packages cannot be fetched; a failed build then proves nothing."""
    if made.returncode == _CANNOT_INSTALL:
        pytest.skip(f"buildah cannot be installed: {made.stdout[-300:]}")
    if made.returncode and (said := _NO_NETWORK.search(made.stdout)):
        pytest.skip(f"Python's packages cannot be fetched: {said[0]}")
