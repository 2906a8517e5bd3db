# SPDX-License-Identifier: Apache-2.0
"""Runs guests, firmware and updates together on one emulated host.

``stage`` starts the processes: ``vmm`` (or a ``broken`` reader) with its guest, and
``demo_writer``, on the host of ``demo_host``. They print each ``demo_event``, ``tally`` counts the
results, and ``conclusion`` says what they show. ``course`` records who did what and when;
``demo_timeline`` writes it for Perfetto, and ``picture`` draws it. Imports ``emulator``, ``vmm``,
``host``, ``certfile``, ``verify``, ``endorsement`` and ``abi``.
"""
