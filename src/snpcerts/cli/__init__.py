# SPDX-License-Identifier: Apache-2.0
"""The command line: one thin module or package per command, imported when it is called.

``main`` finds the command. The commands: ``table``, ``verify``, ``policy_commands`` (``policy``),
``host``, ``report``, ``lock``, ``kds``, ``mirror``, ``run``, ``guest``, ``emulate``,
``conformance``, ``demo``.

``verify`` has more files: ``verify_policy`` and ``verify_sources`` for its options, ``verify_run``
for its work, ``verify_text``, ``verify_advice`` and ``verify_ear`` for its output.
``evidence_files`` finds reports and certificates in files.

All commands use ``files``, which reads and writes files, ``say``, which prints, ``signals``, which
ends a command cleanly, and ``examples``, the examples in the help. ``file_group`` suggests a
command to a user who gives only a file. ``source_options``, ``product_option``, ``hex_option`` and
``tcb_components`` declare shared options and parse their values. ``bulletin_age`` warns if the list
of bulletins is old. Imports ``abi``, ``endorsement``, ``verify``, ``kds``, ``certfile``, ``vmm``,
``guest``, ``emulator``, ``conformance`` and ``demo``.
"""
