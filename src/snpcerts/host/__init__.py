# SPDX-License-Identifier: Apache-2.0
"""The host's side: the firmware behind ``/dev/sev``, and the agent that updates the files.

``sev`` is the client of ``/dev/sev``; ``host_firmware`` the firmware's state as the agent
needs it, ``firmware_change`` what is new in it; ``host_processor`` finds the product,
``mitigations`` and ``initialisation`` read what sysfs and the kernel say. What the agent
knows of the signing keys: ``known``, changed by the rules of ``remembered``, kept on disk by
``key_memory``, proven by ``proof``.

``config`` is the configuration. ``expected_content`` says what a file must hold,
``file_state`` what it holds, ``table_cache`` and ``vlek_store`` have the certificates,
``ownership`` group and mode. ``plan`` says what a firmware command will do; ``agent``
carries it out, with ``locked_update`` around the command. ``watch`` is the agent as a
service, ``notify`` tells the service manager; ``event``, ``log``, ``metrics`` and
``metrics_server`` report, and ``agent_trace`` draws. ``announce`` tells the fleet's mirror how
the host is, ``mirror_wait`` waits until it has a certificate. ``status`` and ``host_check``
answer the commands of these names, with ``kernel_faults``. ``claim_trial`` has a guest show how
this host behaves, ``kernel_numbers`` and ``btf`` read what its kernel says, and
``claim_report`` is the result, claim by claim. ``installation`` puts the units and files of
``system_files`` in place. Imports ``certfile``, ``mirror``, ``kds``, ``verify``,
``endorsement`` and ``abi``.
"""
