# SPDX-License-Identifier: Apache-2.0
"""Runs guests, firmware and updates together on one emulated host, to show what the lock is for.

``stage`` starts the processes on the host of ``demo_host``: each ``vmm`` with its guest (and, in
some runs, a ``broken`` reader), and ``demo_writer``. It yields what happens as ``demo_event``
objects; ``tally`` counts the results, and ``conclusion`` says what they show. ``course`` records
which process did what, and when; ``demo_timeline`` writes this for Perfetto, and ``picture`` draws
it. Imports ``emulator``, ``vmm``, ``host``, ``certfile``, ``verify``, ``endorsement`` and ``abi``.
"""
