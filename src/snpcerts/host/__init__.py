# SPDX-License-Identifier: Apache-2.0
"""The host side: the firmware behind ``/dev/sev``, and the agent that updates the certificate
files.

``sev`` is the client of ``/dev/sev``. ``host_firmware`` is the firmware's state as the agent needs
it; ``firmware_change`` finds what has changed in it. ``host_processor`` finds the product;
``mitigations`` and ``initialisation`` read files in ``/sys`` and ``/proc``. ``known`` is what the
agent knows about the signing keys: ``remembered`` has the rules that change it, ``key_memory``
keeps it on disk, and ``proof`` proves which key signs now.

``config`` is the configuration. ``expected_content`` says what a file must contain, and
``file_state`` what it does contain. ``table_cache`` and ``vlek_store`` hold the certificates;
``ownership`` sets the files' group and mode. ``plan`` plans a firmware command; ``agent`` carries
it out, with ``locked_update`` around the command. ``watch`` is the agent as a service; ``notify``
reports to the service manager; ``event``, ``log``, ``metrics`` and ``metrics_server`` report to
operators, and ``agent_trace`` records a timeline. ``announce`` reports the host's state to the
fleet's mirror; ``mirror_wait`` waits until the mirror has a certificate. ``status`` and
``host_check`` are behind ``host status`` and ``host check``; ``kernel_faults`` lists what ``host
check`` warns about. ``claim_trial`` uses a guest to show how this host behaves, ``kernel_numbers``
and ``btf`` read the kernel's numbers, and ``claim_report`` reports the result for each claim.
``installation`` installs the units and files of ``system_files``. Imports ``certfile``, ``mirror``,
``kds``, ``verify``, ``endorsement`` and ``abi``.
"""
