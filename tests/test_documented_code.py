# SPDX-License-Identifier: Apache-2.0
"""Every Python example in the README and the guides runs unchanged, on its own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi import CertTable, Product, RunView
from snpcerts.abi.kvm import RUN_SIZE, ExitReason
from snpcerts.certfile import CertFile
from snpcerts.cli.main import main
from snpcerts.endorsement import VekKind, anchor_from_certificate, load_certificate
from snpcerts.kds import open_certificate_source
from snpcerts.kds.store import Store
from snpcerts.kds.url import ChainResource, VcekResource
from snpcerts.verify import averify_with, verify, verify_many, verify_with
from snpcerts.vmm import ExitService, MappedMemory
from tests.endorsement.small_ca import TCBS
from tests.verify.test_documented_reasons import CA, CHAIN, sound_report, sound_table
from tests.verify.test_evidence import pem

ROOT = Path(__file__).parents[1]
PAGES = (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
NONCE_LINE = 'nonce = bytes.fromhex("0123456789abcdef")'


def examples() -> list[tuple[str, str]]:
    """The place (page and line) and the code of every example."""
    found = []
    for page in sorted(PAGES):
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{page.relative_to(ROOT)}:{line}", match[1]))
    return found


EXAMPLES = examples()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the examples name; this suite's root stands in for AMD's."""
    anchors = (anchor_from_certificate(load_certificate(CHAIN["ark"], "ARK")),)
    for function in (verify, verify_with, averify_with, verify_many, open_certificate_source):
        assert function.__kwdefaults__ is not None
        monkeypatch.setitem(function.__kwdefaults__, "anchors", anchors)
    files = {
        "report.bin": sound_report(),
        "table.bin": sound_table(),
        "evidence.bin": sound_report() + sound_table(),
        "new-certs.bin": sound_table(),
        "update-firmware": b"#!/bin/sh\n",
        "archive/one": sound_report() + sound_table(),
    } | {f"amd/{name}.der": data for name, data in CHAIN.items()}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "update-firmware").chmod(0o755)
    store, milan = Store(tmp_path / "cache"), Product.MILAN
    store.write(VcekResource(milan, CA.chip_id, TCBS[milan]), CHAIN["vcek"])
    store.write(ChainResource(milan, VekKind.VCEK), pem(CHAIN["ask"]) + pem(CHAIN["ark"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(code, "example", "exec"), names)  # noqa: S102 (the pages are ours)
    return names


def example(page: str, word: str) -> str:
    """The one example of ``page`` that has ``word``."""
    (code,) = (code for place, code in EXAMPLES if place.startswith(page) and word in code)
    return code


def test_there_are_examples() -> None:
    assert {place.partition(":")[0] for place, _ in EXAMPLES} >= {
        "README.md",
        "docs/relying-parties.md",
    }


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=[at for at, _ in EXAMPLES])
def test_an_example_runs_on_its_own(code: str) -> None:
    run(code)


def test_the_readmes_commands_on_files_run(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run ``table`` and ``verify``; packages/test_guides.py runs the commands of host and guest."""
    ask, ark = (load_certificate(CHAIN[name], name) for name in ("ask", "ark"))
    (directory / "ask.pem").write_bytes(ask.public_bytes(Encoding.PEM))
    (directory / "ark.pem").write_bytes(ark.public_bytes(Encoding.PEM))
    (directory / "vcek.der").write_bytes(CHAIN["vcek"])
    (directory / "amd").rename(directory / "certs")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\$ snpcerts ((?:table|verify) .*)$", text, re.M)
    assert len(lines) >= 5
    for line in lines:
        argv = shlex.split(line)
        trust = ["--anchor", "certs/ark.der"] if argv[0] == "verify" else []
        code = main([*argv, *trust])
        assert code == 0, (line, capsys.readouterr())
    assert (directory / "out" / "vcek.pem").exists()


@pytest.mark.usefixtures("directory")
def test_the_first_example_for_relying_parties_verifies_and_refuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = example("docs/relying-parties.md", NONCE_LINE)
    run(code)
    assert capsys.readouterr().out.startswith("verified: Milan, signed by VCEK, TCB ")
    with pytest.raises(SystemExit, match="policy-report-data"):
        run(code.replace(NONCE_LINE, 'nonce = b"another"'))


@pytest.mark.usefixtures("directory")
def test_the_other_examples_for_relying_parties_verify(capsys: pytest.CaptureFixture[str]) -> None:
    run(example("docs/relying-parties.md", "Given("))
    assert "report-signature passed" in capsys.readouterr().out
    run(example("docs/relying-parties.md", "verify_many"))
    assert capsys.readouterr().out == "Counter({'verified': 1})\n"
    verdict = run(example("docs/relying-parties.md", "averify_with"))["verdict"]
    assert str(verdict).startswith("verified: ")


def test_the_readmes_update_changes_the_file(directory: Path) -> None:
    run(example("README.md", ".update(change)"))
    assert CertTable.decode((directory / "certs.bin").read_bytes()).size == len(sound_table())
    (directory / "update-firmware").write_bytes(b"#!/bin/sh\nexit 1\n")
    with pytest.raises(Exception, match="update-firmware"):
        run(example("README.md", ".update(change)"))


def test_the_readmes_exit_service_fills_the_guests_buffer(directory: Path) -> None:
    names = run(example("README.md", "ExitService"))
    names["service"] = ExitService(CertFile(str(directory / "table.bin")))
    view = RunView(bytearray(RUN_SIZE))
    view.exit_reason = ExitReason.SNP_REQ_CERTS
    view.snp_req_certs = (0x1000, 4, 0)
    pages = bytearray(0x8000)
    after_kvm_run = names["after_kvm_run"]
    assert callable(after_kvm_run)
    after_kvm_run(view, MappedMemory([(0, pages)]), lambda: None)
    assert pages[0x1000:].startswith(sound_table())
