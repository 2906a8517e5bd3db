# SPDX-License-Identifier: Apache-2.0
"""Policy files express all that a Policy can; any other content is an error with its line."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.processor_names import PROCESSORS, CpuidRange
from snpcerts.abi.product import Product
from snpcerts.abi.report import SigningKey
from snpcerts.abi.tcb import TcbVersion
from snpcerts.verify.policy import (
    GuestPolicyBits,
    PlatformInfoBits,
    Policy,
    ProcessorFloor,
    Revocation,
    TcbFloor,
    WithoutCpuid,
)
from snpcerts.verify.policy_file import MAX_POLICY_FILE, PolicyFileError, read_policy

WHOLE = f"""
products = ["Milan", "genoa"]
floors_without_cpuid = "refuse"
signing_key = "vlek"
chip_ids = ["{"ab" * 64}"]
csp_ids = "CN=cloud"
report_data = "0102"
user_data = "03"
measurements = ["{"00" * 48}", "{"11" * 48}"]
host_data = "{"22" * 32}"
id_key_digests = "{"33" * 48}"
author_key_digests = ["{"44" * 48}"]
family_id = "{"55" * 16}"
image_id = "{"66" * 16}"
minimum_guest_svn = 3
vmpls = [0, 1]
minimum_policy_abi = "1.51"
launch_mitigations = 0x3f
current_mitigations = 1
minimum_firmware = "1.55.29"
minimum_committed_firmware = "1.55.20"
refuse_provisional_firmware = true
allow_tcb_above_current = true
allow_masked_chip_id = true
revocation = "require"
maximum_crl_age = "36h"

[guest_policy]
debug = "any"
smt = false

[platform_info]
alias_check_complete = true

[[floors]]
processor = "Bergamo"
microcode = 27
bulletins = ["AMD-SB-3023"]
[[floors]]
cpuid = {{ family = 0x19, model = [0x11, 0x12], stepping = 1 }}
snp = 27
microcode = 86
[minimum_tcb.milan]
bootloader = 4
tee = 0
snp = 24
microcode = 219

[minimum_current_tcb]
genoa = {{bootloader = 1, tee = 2, snp = 3, microcode = 4}}

[minimum_committed_tcb.turin]
fmc = 1
bootloader = 2
tee = 3
snp = 4
microcode = 5

[minimum_launch_tcb.turin]
fmc = 5
bootloader = 4
tee = 3
snp = 2
microcode = 1
"""


def test_every_field_can_be_set() -> None:
    assert read_policy(WHOLE.encode()) == Policy(
        signing_key=SigningKey.VLEK,
        chip_ids=(b"\xab" * 64,),
        csp_ids=("CN=cloud",),
        report_data=b"\1\2",
        user_data=b"\3",
        measurements=(bytes(48), b"\x11" * 48),
        host_data=b"\x22" * 32,
        id_key_digests=(b"\x33" * 48,),
        author_key_digests=(b"\x44" * 48,),
        family_id=b"\x55" * 16,
        image_id=b"\x66" * 16,
        minimum_guest_svn=3,
        vmpls=(0, 1),
        guest_policy=GuestPolicyBits(debug=None, smt=False),
        minimum_policy_abi=(1, 51),
        platform_info=PlatformInfoBits(alias_check_complete=True),
        launch_mitigations=0x3F,
        current_mitigations=1,
        minimum_firmware=(1, 55, 29),
        minimum_committed_firmware=(1, 55, 20),
        refuse_provisional_firmware=True,
        minimum_tcb=TcbFloor(milan=TcbVersion(4, 0, 24, 219)),
        minimum_current_tcb=TcbFloor(genoa=TcbVersion(1, 2, 3, 4)),
        minimum_committed_tcb=TcbFloor(turin=TcbVersion(2, 3, 4, 5, fmc=1)),
        minimum_launch_tcb=TcbFloor(turin=TcbVersion(4, 3, 2, 1, fmc=5)),
        products=(Product.MILAN, Product.GENOA),
        floors=(
            ProcessorFloor(
                processors=PROCESSORS["bergamo"],
                name="bergamo",
                microcode=27,
                bulletins=("AMD-SB-3023",),
            ),
            ProcessorFloor(processors=CpuidRange(0x19, (0x11, 0x12), (1, 1)), snp=27, microcode=86),
        ),
        floors_without_cpuid=WithoutCpuid.REFUSE,
        allow_tcb_above_current=True,
        allow_masked_chip_id=True,
        revocation=Revocation.REQUIRE,
        maximum_crl_age=timedelta(hours=36),
    )
    said = read_policy(WHOLE)
    for field in fields(Policy):
        assert getattr(said, field.name) != getattr(Policy(), field.name), field.name


def test_an_empty_file_is_the_default_policy() -> None:
    assert read_policy(b"") == Policy()
    assert read_policy("# nothing\n[guest_policy]\n") == Policy()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("vmpls = [0]\nmeasurment = 'x'\n", 2, "measurment: unknown key"),
        ("\n[guest_policy]\nsmt = true\ndebugging = false\n", 4, "guest_policy.debugging"),
        ("[platform_info]\nsmt = true\n", 2, "platform_info.smt: unknown key"),
        ("[minimum_tcb.rome]\nsnp = 1\n", 1, "minimum_tcb.rome"),
        ("[minimum_tcb.milan]\nfmc = 1\n", 2, "minimum_tcb.milan.fmc"),
        ("vmpls = 0\n[minimum_tcb.milan]\nbootloader = 1\nsnp = 2\n", 2, "found no tee"),
        ("[minimum_tcb.turin]\nbootloader = 1\ntee=1\nsnp=1\nmicrocode=1\n", 1, "found no fmc"),
        ("[minimum_tcb.milan]\n\nbootloader = 256\n", 3, "from 0 to 255, found 256"),
        ("[minimum_tcb.milan]\nbootloader = true\n", 2, "whole number"),
        ("[minimum_tcb.milan]\nbootloader = 1.0\n", 2, "whole number"),
        ("minimum_tcb = 4\n", 1, "expected a table"),
        ("[minimum_tcb]\n", 1, "at least one product"),
        ("[minimum_tcb.bergamo]\nsnp = 1\n", 1, "[[floors]]"),
        ("products = ['rome']\n", 1, "expected one of milan"),
        ("floors = 3\n", 1, "[[floors]]"),
        ("[floors]\nprocessor = 'genoa'\n", 1, "[[floors]]"),
        ("[[floors]]\nsnp = 1\n", 1, "processor or cpuid"),
        ("[[floors]]\nprocessor = 'rome'\nsnp = 1\n", 2, "expected one of milan"),
        ("[[floors]]\nprocessor = 'milan'\n", 1, "at least one component"),
        (
            "vmpls = 0\n[[floors]]\nprocessor = 'milan'\nsnp = 1\n"
            "[[floors]]\nprocessor = 'milan'\nsnp = 256\n",
            7,
            "from 0 to 255, found 256",
        ),
        (
            "[[floors]]\nprocessor = 'milan'\nfmc = 1\n",
            1,
            "fmc: the TCB of Milan has no such component",
        ),
        (
            "[[floors]]\nsnp = 1\ncpuid = { family = 6, model = 1 }\n",
            1,
            "a known SEV-SNP processor",
        ),
        ("[[floors]]\nsnp = 1\ncpuid = { family = 25 }\n", 3, "expected the key model"),
        (
            "[[floors]]\nsnp = 1\ncpuid = { family = 25, model = [3, 1] }\n",
            1,
            "the lower one first",
        ),
        ("floors_without_cpuid = 'maybe'\n", 1, "expected one of strictest, refuse"),
        ("[guest_policy]\ndebug = 0\n", 2, 'true, false or "any"'),
        ("[guest_policy]\ndebug = 'no'\n", 2, 'true, false or "any"'),
        ("x = 1", 1, "unknown key"),
        ("# a\n# b\nhost_data = 'ab'\n", 3, "expected 32 bytes, found 1"),
        ("host_data = 'xyz'\n", 1, "expected hexadecimal text"),
        ("host_data = 7\n", 1, "expected text"),
        ("measurements = []\n", 1, "at least one value"),
        ("measurements = [['00']]\n", 1, "expected text"),
        ("vmpls = [0, 4]\n", 1, "0 to 3, or 0xffffffff for the host, found 4"),
        ("minimum_firmware = '1.55'\n", 1, "3 numbers"),
        ("minimum_firmware = '1.55.x'\n", 1, "expected a version"),
        ("minimum_policy_abi = 1.55\n", 1, "expected text"),
        ("revocation = 'always'\n", 1, "if-given"),
        ("maximum_crl_age = '0d'\n", 1, "expected an age"),
        ("maximum_crl_age = 86400\n", 1, "expected text"),
        ("signing_key = 'none'\n", 1, "vcek"),
        ("refuse_provisional_firmware = 1\n", 1, "true or false"),
        ("report_data = ''\n", 1, "1 to 64"),
    ],
)
def test_unknown_content_is_an_error_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        read_policy(text)
    assert caught.value.line == line
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"policy, line {line}: ")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"x = ",
        b"vmpls = [0]\nvmpls = [1]\n",
        b"x = " + b"[" * 60000,
        b"minimum_guest_svn = " + b"9" * 5000,
        b"#" * (MAX_POLICY_FILE + 1),
    ],
    ids=["bytes", "cut", "twice", "nested", "digits", "large"],
)
def test_text_that_is_not_toml_is_an_error(data: bytes) -> None:
    with pytest.raises(PolicyFileError):
        read_policy(data)


def test_hostile_names_are_not_repeated() -> None:
    with pytest.raises(PolicyFileError) as caught:
        read_policy('"\\u001b[2J" = 1\n')
    assert "\x1b" not in str(caught.value)


LINES = WHOLE.splitlines()


@given(st.lists(st.sampled_from(LINES), max_size=12), st.text(max_size=12))
def test_garbage_only_raises_errors_of_the_package(lines: list[str], text: str) -> None:
    with contextlib.suppress(PolicyFileError):
        assert isinstance(read_policy("\n".join([*lines, text])), Policy)
