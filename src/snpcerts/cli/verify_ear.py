# SPDX-License-Identifier: Apache-2.0
"""Writes the verdict on a report as an EAR."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from snpcerts.cli.files import read_input, write_output
from snpcerts.cli.say import say

if TYPE_CHECKING:
    from snpcerts.verify.ear import EarSigner
    from snpcerts.verify.policy import Policy
    from snpcerts.verify.verdict import Verdict


@dataclass(frozen=True, slots=True)
class EarFile:
    """Where to write the EAR, the key that signs it, and what it says about the policy."""

    path: str
    signer: EarSigner
    policy_id: str
    nonce: bytes | None

    @classmethod
    def to(cls, path: str, key: str, policy: Policy, policy_file: str | None) -> EarFile:
        """Read the key and prepare the EAR.

        The policy's identifier is the SHA-256 of its file, and says whether options changed the
        policy. The nonce is the required report data, if it has the size of a nonce.
        """
        from snpcerts.verify.ear import MAX_NONCE, MIN_NONCE, EarSigner
        from snpcerts.verify.policy import Policy
        from snpcerts.verify.policy_file import read_policy

        signer = EarSigner.from_pem(read_input(key), key)
        policy_id, unchanged = "snpcerts:default", Policy()
        if policy_file is not None:
            data = read_input(policy_file)
            policy_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
            unchanged = read_policy(data)
        if policy != unchanged:
            policy_id += "+options"
        nonce = policy.report_data
        if nonce is not None and not MIN_NONCE <= len(nonce) <= MAX_NONCE:
            nonce = None
        return cls(path, signer, policy_id, nonce)

    @property
    def on_standard_output(self) -> bool:
        """Whether the EAR replaces the verdict on standard output."""
        return self.path == "-"

    def write(self, verdict: Verdict) -> None:
        """Sign and write the EAR.

        Raises :class:`~snpcerts.errors.RefusedError` if the file cannot be written.
        """
        from snpcerts.verify.ear import ear_claims

        token = self.signer.sign(ear_claims(verdict, policy_id=self.policy_id, nonce=self.nonce))
        if self.on_standard_output:
            say(token)
        else:
            write_output(self.path, f"{token}\n".encode("ascii"))
