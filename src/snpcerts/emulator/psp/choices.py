# SPDX-License-Identifier: Apache-2.0
"""The questions on which sources about AMD's firmware disagree, and the emulator's choices.

Each row of :data:`ROWS` is one question, with an answer and its source for each firmware that can
be chosen. Behaviour on which all sources agree is not listed.

``genoa-1.55.25`` follows the source that AMD published (repository amd/AMD-ASPFW, directory
``fw/psp_bl_uapps/sev_uapp/src``). ``documented`` follows AMD's SNP ABI (56860) as others restate
it, and the published source where the document is silent. ``observed-2022`` follows what one
observer saw on real firmware of that year, and ``documented`` in everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snpcerts.abi.psp import SevStatus
from snpcerts.errors import UsageError

Answer = bool | SevStatus


@dataclass(frozen=True, slots=True)
class FirmwareChoices:
    """A firmware that the emulator can imitate, and its answer to each question in :data:`ROWS`."""

    name: str
    commit_drops_vlek: bool
    config_drops_vlek: bool
    mask_chip_key_stops_vlek: bool
    config_compares_components: bool
    reload_commits: bool
    reload_clears_masks: bool
    init_derives_running_vcek: bool
    bad_message_tag: SevStatus
    report_vmpl_at_most_three: bool

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Reading:
    """One source's answer to a question, and the place where the source gives it."""

    answer: Answer
    source: str

    @property
    def shown(self) -> str:
        """The answer as text: yes, no or the name of a status."""
        if isinstance(self.answer, SevStatus):
            return self.answer.name
        return "yes" if self.answer else "no"


@dataclass(frozen=True, slots=True)
class Row:
    """One question, and what each source answers. ``choice`` is the question's field in
    :class:`FirmwareChoices`.

    If ``documented`` is None, the document is silent and the published source is used. If
    ``observed`` is None, nothing was observed and the documented behaviour is used.
    """

    choice: str
    question: str
    published: Reading
    documented: Reading | None = None
    observed: Reading | None = None

    def reading(self, firmware: str) -> Reading:
        """Return the answer for the firmware called ``firmware`` (one of :data:`NAMES`), and the
        answer's source.
        """
        if firmware == PUBLISHED:
            return self.published
        documented = self.documented or Reading(
            self.published.answer, f"the document is silent; {self.published.source}"
        )
        return (self.observed or documented) if firmware == OBSERVED else documented


PUBLISHED: Final = "genoa-1.55.25"
DOCUMENTED: Final = "documented"
OBSERVED: Final = "observed-2022"
NAMES: Final = (PUBLISHED, DOCUMENTED, OBSERVED)

DEFAULT: Final = DOCUMENTED
DEFAULT_REASON: Final = (
    "The published source covers one product at one version, which is "
    "older than the emulator's default versions (Milan 1.55.29, Genoa "
    "1.55.40, Turin 1.55.65). The document covers them all."
)

ROWS: Final = (
    Row(
        "commit_drops_vlek",
        "Does SNP_COMMIT drop a loaded VLEK if it changes the reported TCB?",
        Reading(
            False, "sev_mcmd.c: snp_mcmd_commit and update_committed_versions touch the VCEK only"
        ),
        Reading(True, "SNP ABI, SNP_COMMIT, as virtee/sev restates it at Firmware::snp_commit"),
    ),
    Row(
        "config_drops_vlek",
        "Does SNP_CONFIG drop a loaded VLEK if it changes the reported TCB?",
        Reading(False, "sev_mcmd.c: snp_mcmd_config derives the VCEK again and leaves the VLEK"),
        Reading(
            True, "the rule of SNP_COMMIT, assumed to apply to every change of the reported TCB"
        ),
    ),
    Row(
        "mask_chip_key_stops_vlek",
        "Does MASK_CHIP_KEY also keep a loaded VLEK from signing?",
        Reading(
            False,
            "sev_mcmd.c: snp_mcmd_guest_request, SNP_MSG_REPORT_REQ, tests the mask only for the "
            "VCEK",
        ),
        Reading(
            True,
            (
                "psp-sev.h, struct sev_user_data_snp_status, mask_chip_key: says "
                "whether reports are signed; it does not mention a VLEK"
            ),
        ),
    ),
    Row(
        "config_compares_components",
        "Must each component of SNP_CONFIG's TCB be at most the committed one?",
        Reading(
            False,
            "sev_plat.c: tcb_compare_versions and tcb_version_to_num compare each TCB as one "
            "number, boot loader first",
        ),
        Reading(True, "SNP ABI 2.2: one TCB_VERSION is at most another if each component is"),
    ),
    Row(
        "reload_commits",
        "After SNP_SHUTDOWN and SNP_INIT, is the current TCB committed?",
        Reading(
            True,
            "sev_mcmd.c: snp_mcmd_shutdown_common overwrites perm.magic; then, in sev_plat.c, "
            "init_perm takes the committed TCB from the running firmware",
        ),
        Reading(False, "SNP ABI: only SNP_COMMIT and DOWNLOAD_FIRMWARE commit"),
    ),
    Row(
        "reload_clears_masks",
        "After SNP_SHUTDOWN and SNP_INIT, are both mask bits zero?",
        Reading(True, "sev_plat.c: init_perm clears the area that holds them"),
    ),
    Row(
        "init_derives_running_vcek",
        "Does SNP_INIT derive the VCEK for the current TCB instead of the reported one?",
        Reading(
            True,
            "sev_mcmd.c: snp_mcmd_init_common calls vcek_hash_derive without a TCB; "
            "gPersistent.config_tcb keeps its value",
        ),
        Reading(False, "SNP ABI: a report is signed with the VCEK of REPORTED_TCB"),
    ),
    Row(
        "bad_message_tag",
        "The status of a guest message whose tag does not verify",
        Reading(
            SevStatus.BAD_MEASUREMENT,
            "sev_mcmd.c: snp_mcmd_guest_request; ccp_direct_cipher.c compares the GCM tag",
        ),
        observed=Reading(SevStatus.INVALID_PARAM, "observed on a real host in 2022"),
    ),
    Row(
        "report_vmpl_at_most_three",
        "Is a report request for a VMPL above 3 refused?",
        Reading(
            False,
            "sev_mcmd.c: snp_mcmd_guest_request, SNP_MSG_REPORT_REQ, compares the VMPL only with "
            "the VMPCK's number",
        ),
        Reading(
            True, "SNP ABI, MSG_REPORT_REQ, VMPL, as virtee/snpguest restates it (--vmpl, 0 to 3)"
        ),
    ),
)


def _column(name: str) -> FirmwareChoices:
    return FirmwareChoices(name, **{row.choice: row.reading(name).answer for row in ROWS})  # type: ignore[arg-type]  # a test of the table checks the types of the answers


FIRMWARES: Final = {name: _column(name) for name in NAMES}


def choices_of(name: str | None) -> FirmwareChoices:
    """Return the firmware called ``name``, or the default firmware if ``name`` is None.

    Raises :class:`UsageError` for an unknown name.
    """
    try:
        return FIRMWARES[name or DEFAULT]
    except KeyError:
        raise UsageError(
            f"unknown firmware {name!r}", hint=f"choose one of these: {', '.join(NAMES)}"
        ) from None
