# SPDX-License-Identifier: Apache-2.0
"""Writes the verdict on a report as an EAR (EAT attestation result)."""

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
    """The file to write an EAR to, the key that signs the EAR, and the policy that the EAR
    names.
    """

    path: str
    signer: EarSigner
    policy_id: str
    nonce: bytes | None

    @classmethod
    def to(cls, path: str, key: str, policy: Policy, policy_file: str | None) -> EarFile:
        """Return the EAR file at ``path``, with the signing key that the file ``key`` contains.

        The policy's identifier is the SHA-256 of the policy file, with "+options" if options
        changed the policy. The nonce is the required report data, if its size is one that EAT
        allows for a nonce.
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
        """Whether the EAR goes to standard output, in place of the verdict."""
        return self.path == "-"

    def write(self, verdict: Verdict) -> None:
        """Make the EAR for a verdict, sign it, and write it.

        Raises :class:`~snpcerts.errors.RefusedError` if the file cannot be written.
        """
        from snpcerts.verify.ear import ear_claims

        token = self.signer.sign(ear_claims(verdict, policy_id=self.policy_id, nonce=self.nonce))
        if self.on_standard_output:
            say(token)
        else:
            write_output(self.path, f"{token}\n".encode("ascii"))
