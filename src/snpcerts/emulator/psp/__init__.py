# SPDX-License-Identifier: Apache-2.0
"""The security processor: SEV firmware, its chip and keys, and ``/dev/sev``.

``firmware`` serves commands on a ``platform_state`` (pure: TCBs, masks, VLEK); ``choices`` says
what differs between published, documented and observed firmware. ``chip`` derives keys;
``chip_model`` has the facts of each product's processor. ``guest_context`` is a launched guest,
``guest_messages`` answers its messages, ``message_seal`` encrypts them; ``id_block``,
``cpuid_check`` and ``vmsa`` are what a launch checks and measures. ``sev_certificates`` are those
of plain SEV. ``saved_platform`` writes and reads the state; ``sev_device`` is ``/dev/sev``;
``timed_firmware`` tells when a command ran; ``error`` is what one fails with. Imports ``syscall``
and ``abi``.
"""
