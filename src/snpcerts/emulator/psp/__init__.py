# SPDX-License-Identifier: Apache-2.0
"""The security processor: SEV firmware, its chip and keys, and ``/dev/sev``.

``firmware`` runs commands on a ``platform_state`` (TCBs, masks, VLEK). ``choices`` lists the
differences between published, documented and observed firmware. ``chip`` derives keys;
``chip_model`` has the facts about each product's processor. ``guest_context`` is a launched guest,
``guest_messages`` answers its messages, and ``message_seal`` encrypts them. ``id_block``,
``cpuid_check`` and ``vmsa`` contain what a launch checks and measures. ``sev_certificates`` has the
certificates of plain SEV. ``saved_platform`` writes and reads the state. ``sev_device`` is
``/dev/sev``. ``timed_firmware`` reports when each command ran. ``error`` is the error that a failed
command raises. Imports ``syscall`` and ``abi``.
"""
