# SPDX-License-Identifier: Apache-2.0
"""Build all files of a release in one directory.

``python packaging/build.py dist`` makes the sdist, the wheel, the SBOM, the .deb and the .rpm.
Run it with a Python in which ``pip install '.[packages]'`` was run. With the same tree, compiler,
``SOURCE_DATE_EPOCH`` and tools, all files are identical, byte for byte. The default of
``SOURCE_DATE_EPOCH`` is the time of the last commit.

The .deb and the .rpm contain the dependencies in ``packaging/locked.txt``, in their own virtual
environment, ``/usr/lib/snpcerts``, which uses the system's python3. Distributions have older
releases of some dependencies than snpcerts needs (cryptography, httpx2). A zip (shiv, pex) would
unpack itself into root's home, which the systemd unit cannot see, and the shim must be a file that
other programs can map. A C extension works with only one version of Python, so the environment
contains the extensions for each of ``PYTHONS``. The same package therefore still works after a
distribution changes to another of these versions.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ROOT / "packaging"
LOCKED = PACKAGING / "locked.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORM = "manylinux_2_34_x86_64"
# A dependency's wheel may be built for any of these: PLATFORM runs wheels for the older ones too.
PLATFORMS = (PLATFORM, "manylinux_2_28_x86_64", "manylinux2014_x86_64")
PRIVATE = "usr/lib/snpcerts"
LAUNCHER = """\
#!/usr/lib/snpcerts/bin/python3 -I
import sys

from snpcerts.__main__ import run

sys.argv[0] = "snpcerts"
run()
"""


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Build all files of a release.")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--also", metavar="VERSION", help="also build a .deb and .rpm numbered VERSION, for tests"
    )
    chosen = parser.parse_args()
    os.environ.setdefault("SOURCE_DATE_EPOCH", _epoch())
    # Find the tools that pip has put beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.umask(0o022)
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory(prefix="snpcerts-build-") as work:
        _tell("the wheel and the source archive")
        wheel = build_wheel(out, Path(work))
        _tell("the SBOM")
        sbom = build_sbom(out / f"snpcerts-{version}.cdx.json", version)
        stage = Path(work, "stage")
        build_stage(stage, Path(work), wheel, sbom)
        for each in filter(None, (version, chosen.also)):
            _tell(f"the .deb and the .rpm of {each}")
            build_packages(out, stage, each)
    for path in sorted(out.iterdir()):
        if path.is_file():
            print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def _tell(step: str) -> None:
    """Say what is being built, because a build takes a minute or more."""
    print(f"building: {step}", file=sys.stderr, flush=True)


def _epoch() -> str:
    return _run("git", "-C", ROOT, "log", "-1", "--format=%ct").strip()


def _run(*words: str | Path, **variables: str) -> str:
    """Run a tool. If it fails, print its output and end the build."""
    made = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    if made.returncode != 0:
        shown = " ".join(map(str, words))
        sys.exit(f"{shown} failed:\n{made.stdout[-4000:]}{made.stderr[-4000:]}")
    return made.stdout


def build_wheel(out: Path, work: Path) -> Path:
    """Build sdist and wheel; return the wheel, tagged with the C library version it needs."""
    made = work / "made"
    _run(sys.executable, "-m", "build", "--outdir", made, ROOT)
    (wheel,) = made.glob("*.whl")
    if "linux" not in wheel.name:
        sys.exit("the wheel has no shim: a release needs a C compiler, on x86-64")
    # auditwheel refuses a library that needs a newer C library than PLATFORM has.
    _run(
        *(sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "--only-plat"),
        *("--wheel-dir", out, wheel),
    )
    (sdist,) = made.glob("*.tar.gz")
    shutil.copy(sdist, out)
    (wheel,) = out.glob("*.whl")
    return wheel


def build_sbom(path: Path, version: str) -> Path:
    """Write the SBOM (CycloneDX): snpcerts and its locked dependencies with their hashes."""
    made = _run(
        *("cyclonedx-py", "requirements", LOCKED, "--pyproject", ROOT / "pyproject.toml"),
        *("--output-reproducible", "--of", "JSON"),
    )
    sbom = json.loads(made)
    sbom["metadata"]["component"]["version"] = version
    path.write_text(json.dumps(sbom, indent=1, sort_keys=True) + "\n")
    return path


def build_stage(stage: Path, work: Path, wheel: Path, sbom: Path) -> None:
    """Lay out the files of the packages below ``stage``."""
    site = stage / PRIVATE / "lib/python3/site-packages"
    site.mkdir(parents=True)
    for python in PYTHONS:
        _tell(f"the dependencies for Python {python}")
        folder = work / f"wheels-{python}"
        _download(python, folder)
        for each in sorted(folder.glob("*.whl")):
            unpack(each, site, stage / "usr")
        (stage / PRIVATE / "lib" / f"python{python}").symlink_to("python3")
    unpack(wheel, site, stage / "usr")
    (stage / PRIVATE / "lib64").symlink_to("lib")
    (stage / PRIVATE / "pyvenv.cfg").write_text(
        "home = /usr/bin\ninclude-system-site-packages = false\n"
    )
    programs = stage / PRIVATE / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to("/usr/bin/python3")
    (programs / "snpcerts").write_text(LAUNCHER)
    (programs / "snpcerts").chmod(0o755)
    for page in sorted((stage / "usr/share/man/man1").iterdir()):
        packed = gzip.compress(page.read_bytes(), mtime=0)
        page.with_name(f"{page.name}.gz").write_bytes(packed)
        page.unlink()
    documents = stage / "usr/share/doc/snpcerts"
    documents.mkdir(parents=True)
    for name in ("README.md", "CHANGELOG.md", "SECURITY.md"):
        shutil.copy(ROOT / name, documents)
    shutil.copy(ROOT / "LICENSE", documents / "copyright")
    shutil.copy(sbom, documents / "sbom.cdx.json")
    _configuration(stage, site, work)


def _download(python: str, folder: Path) -> None:
    """Fetch the locked dependencies for one Python; end the build if a hash differs."""
    platforms = [word for each in PLATFORMS for word in ("--platform", each)]
    _run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"),
        *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", LOCKED),
        *("--python-version", python, *platforms, "--dest", folder),
    )


def _configuration(stage: Path, site: Path, work: Path) -> None:
    """Copy into the packages the configuration file that ``host install`` writes."""
    other = work / "other"
    (other / "etc").mkdir(parents=True)
    (other / "etc/group").write_text("kvm:x:104:\n")
    words = ("-m", "snpcerts", "host", "install", "--root", str(other))
    _run(*(sys.executable, "-B", *words, "--command", "/usr/bin/snpcerts"), PYTHONPATH=str(site))
    (stage / "etc").mkdir()
    shutil.copy(other / "etc/snpcerts.toml", stage / "etc")


def unpack(wheel: Path, site: Path, prefix: Path) -> None:
    """Unpack a wheel into ``site``, and its data files below ``prefix``.

    A file that another wheel has put there must be the same, except in ``.dist-info``: a C
    extension's metadata names a version of Python.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            place = site / member.filename
            if found := re.match(r"[^/]+\.data/data/(.*)", member.filename):
                place = prefix / found[1]
            elif re.match(r"[^/]+\.data/", member.filename):
                continue  # scripts: snpcerts has its own launcher, others' are not wanted
            data = archive.read(member)
            if place.exists() and place.read_bytes() != data and ".dist-info/" not in str(place):
                sys.exit(f"{wheel.name}: {member.filename} differs in another Python's wheel")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            place.chmod(0o644)


def build_packages(out: Path, stage: Path, version: str) -> None:
    """Write the .deb and the .rpm, both from ``nfpm.yaml``."""
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    for place in (stage, *sorted(stage.rglob("*"))):
        os.utime(place, (epoch, epoch), follow_symlinks=False)
    # nfpm itself replaces variables only in some fields, so replace them here.
    text = (PACKAGING / "nfpm.yaml").read_text()
    for name, value in (("STAGE", stage), ("PACKAGING", PACKAGING), ("VERSION", version)):
        text = text.replace(f"${{{name}}}", str(value))
    description = stage.with_name("nfpm.yaml")
    description.write_text(text)
    for kind in ("deb", "rpm"):
        _run(
            *("nfpm", "package", "--config", description, "--packager", kind, "--target", out),
        )


if __name__ == "__main__":
    main()
