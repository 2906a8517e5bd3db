# SPDX-License-Identifier: Apache-2.0
"""The container image and the Helm chart: linted and rendered; the image's steps run here.

The steps of the Containerfile run on a bare Debian 13, without a container engine. At the full
size, test_image.py builds the image itself.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from snpcerts.cli.main import cli
from snpcerts.host.config import parse
from tests.packages.bare_root import FETCHED, BareRoot
from tests.packages.conftest import ROOT

CHART = ROOT / "packaging/helm/snpcerts"
CONTAINERFILE = ROOT / "packaging/image/Containerfile"


@pytest.fixture(scope="session")
def helm() -> Path:
    path = FETCHED / "helm"
    if not path.exists():
        pytest.skip("no helm: fetch.sh builds it on a machine with Go")
    return path


def rendered(helm: Path, *argv: str) -> list[dict[str, Any]]:
    made = subprocess.run(
        [helm, "template", "snp", CHART, "--kube-version", "1.34", *argv],
        capture_output=True,
        text=True,
        check=True,
    )
    program = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
    read = subprocess.run(
        [FETCHED / "venv/bin/python", "-c", program],
        input=made.stdout,
        capture_output=True,
        text=True,
        check=True,
    )
    documents: list[dict[str, Any]] = json.loads(read.stdout)
    return documents


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (each for each in documents if each["kind"] == kind)
    return found


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = document["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def check_arguments(argv: list[str]) -> None:
    """Check that ``argv`` is one of our commands, with options that this command has."""
    found: click.Command | None = cli
    argv = list(argv)
    context = click.Context(cli)
    while isinstance(found, click.Group):
        found = found.get_command(context, argv.pop(0))
    assert found is not None
    options = {option for each in found.params for option in each.opts}
    assert {word.partition("=")[0] for word in argv} <= options


def test_the_chart_has_no_faults(helm: Path) -> None:
    made = subprocess.run(
        [helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout


def test_the_agent_has_the_device_the_files_and_metrics(helm: Path) -> None:
    documents = rendered(helm)
    agent = of_kind(documents, "DaemonSet")
    container = container_of(agent)
    check_arguments(container["args"])
    assert "--kds=http://snp-mirror:8180" in container["args"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in agent["spec"]["template"]["spec"]["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["sev"]["hostPath"] == {"path": "/dev/sev", "type": "CharDevice"}
    assert mounts["state"] == volumes["state"]["hostPath"]["path"] == "/var/lib/snpcerts"
    assert f"--metrics-file={mounts['metrics']}/snpcerts.prom" in container["args"]
    config = of_kind(documents, "ConfigMap")["data"]["snpcerts.toml"]
    assert parse(config).files[0].path == "/var/lib/snpcerts/certs.bin"


def test_the_mirror_serves_what_the_agents_ask(helm: Path) -> None:
    documents = rendered(helm)
    container = container_of(of_kind(documents, "Deployment"))
    check_arguments(container["args"])
    assert of_kind(documents, "Service")["metadata"]["name"] == "snp-mirror"
    assert container["ports"][0]["containerPort"] == 8180
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_several_mirrors_need_a_database_that_they_share(helm: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        rendered(helm, "--set", "mirror.replicas=2")
    assert "mirror.databaseSecret" in failed.value.stderr
    argv = ("--set", "mirror.replicas=2", "--set", "mirror.databaseSecret=db")
    documents = rendered(helm, *argv)
    deployment = of_kind(documents, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    assert container_of(deployment)["env"][0]["name"] == "SNPCERTS_MIRROR_DATABASE"
    assert not [each for each in documents if each["kind"] == "PersistentVolumeClaim"]


def test_the_containerfile_has_no_faults() -> None:
    made = subprocess.run(
        [FETCHED / "venv/bin/hadolint", CONTAINERFILE], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stdout) == (0, ""), made.stderr


def test_the_images_steps_make_an_agent_and_a_mirror(release: Path, tmp_path: Path) -> None:
    text = CONTAINERFILE.read_text().replace("\\\n", "")
    steps = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    assert len(steps) == 2
    source = tmp_path / "source"
    source.mkdir()
    for name in ("src", "native", "docs", "packaging"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copy(ROOT / "packaging/image/locked.txt", source)
    system = BareRoot(FETCHED / "trixie", tmp_path / "system", release, source)
    try:
        made = system.run(
            "set -e; cd /run/source\n" + "\n".join(steps) + "\nPATH=/opt/snpcerts/bin:$PATH; cd ~\n"
            "snpcerts mirror serve --help >/dev/null; snpcerts host sync --help >/dev/null\n"
            "snpcerts --version; snpcerts mirror serve --listen 127.0.0.1:0 --database "
            "sqlite:////root/mirror.db >log 2>&1 & \n"
            "timeout 180 tail -n +1 -f log | grep -m 1 'http://'\n"
        )
    finally:
        system.remove()
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
