# SPDX-License-Identifier: Apache-2.0
"""Judges how a VMM handles KVM_EXIT_SNP_REQ_CERTS, with scripted guests.

``vmm_check`` lists the checks; ``scenarios`` are the sequences of events that exercise them.
``suite`` runs all scenarios in ``workers`` and returns a ``result`` for each check. A ``trial`` is
one run of a VMM. In it, ``trial_guest`` makes the requests, and ``served_file`` is the file and its
changes; ``processor_time`` tells a slow VMM from a slow machine. ``observed_kvm`` and
``file_observer`` write a ``journal``; ``description`` tells open files apart, ``written_files``
notes other files that the VMM writes, and ``stop_signal`` finds the process that handles the stop
signal. ``vmm_output`` and ``kept`` show what went wrong, and ``trial_timeline`` draws the trial.
Imports ``emulator``, ``certfile`` and ``abi``.
"""
