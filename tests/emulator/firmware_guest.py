# SPDX-License-Identifier: Apache-2.0
"""A guest with nothing between it and the firmware: it seals messages and opens answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from snpcerts.abi.guest_message import (
    REPORT_AT,
    MessageHeader,
    MessageType,
    ReportRequest,
    ReportResponse,
    SecretsPage,
)
from snpcerts.abi.kvm import PageType
from snpcerts.abi.report import Report
from snpcerts.emulator.psp.firmware import Firmware
from snpcerts.emulator.psp.guest_context import GuestContext
from snpcerts.emulator.psp.message_seal import header_for, open_sealed, seal
from tests.emulator.id_blocks import new_key, signed

POLICY = 0x30000  # SMT allowed, and the bit that must be one
HOST_DATA = bytes(range(32))


class FirmwareGuest:
    """A launched guest. ``counters`` counts its messages, separately for each VMPCK.

    ``id_block`` has arguments for :func:`tests.emulator.id_blocks.signed`. ``before_finish`` is
    called with the guest's context before its launch is finished.
    """

    def __init__(
        self,
        firmware: Firmware,
        *,
        id_block: Mapping[str, Any] | None = None,
        host_data: bytes = HOST_DATA,
        before_finish: Callable[[GuestContext], None] = lambda _: None,
        **finish: bool,
    ) -> None:
        self.firmware = firmware
        self.context = firmware.launch_start(POLICY)
        firmware.launch_update(self.context, 0x10_0000, PageType.NORMAL, b"\x90" * 4096)
        page = firmware.launch_update(self.context, 0x1000, PageType.SECRETS, bytes(4096))
        assert page is not None
        secrets = SecretsPage.unpack(page)
        self.vmpcks = (secrets.vmpck0, secrets.vmpck1, secrets.vmpck2, secrets.vmpck3)
        block = None
        if id_block is not None:
            block = signed(self.context.measurement, POLICY, **{"id_key": new_key(), **id_block})
            finish["author_key_en"] = "author_key" in id_block
        before_finish(self.context)
        firmware.launch_finish(self.context, host_data, id_block=block, **finish)
        self.counters = [0] * 4

    def header(self, msg_type: int, vmpck: int = 0, *, version: int = 1) -> MessageHeader:
        return header_for(msg_type, self.counters[vmpck] + 1, vmpck, msg_version=version)

    def ask(self, msg_type: int, payload: bytes, vmpck: int = 0) -> bytes:
        """Return the decrypted answer to one message."""
        page = seal(self.vmpcks[vmpck], self.header(msg_type, vmpck), payload)
        header, answer = open_sealed(
            self.vmpcks[vmpck], self.firmware.guest_request(self.context, page)
        )
        self.counters[vmpck] += 2
        assert header.msg_type == msg_type + 1
        assert header.msg_seqno == self.counters[vmpck]
        assert header.msg_vmpck == vmpck
        return answer

    def ask_report(
        self, *, vmpl: int = 0, key_sel: int = 0, data: bytes = bytes(64), vmpck: int = 0
    ) -> tuple[int, Report | None]:
        """Return the STATUS of the answer, and the report if there is one."""
        request = ReportRequest(report_data=data, vmpl=vmpl, key_sel=key_sel)
        answer = self.ask(MessageType.REPORT_REQ, request.pack(), vmpck)
        response = ReportResponse.unpack(answer)
        assert len(answer) == REPORT_AT + response.report_size == 0x4C0
        if response.status:
            assert not any(answer[REPORT_AT:])
            return response.status, None
        return 0, Report.unpack(answer[REPORT_AT:])

    def report(self, **request: object) -> Report:
        status, report = self.ask_report(**request)  # type: ignore[arg-type]  # as ask_report has them
        assert status == 0
        assert report is not None
        return report


def verify(report: Report, key: ec.EllipticCurvePublicKey) -> None:
    """Raise ``InvalidSignature`` unless ``key`` signed ``report``."""
    signature = encode_dss_signature(*report.signature)
    key.verify(signature, report.signed_bytes, ec.ECDSA(SHA384()))
