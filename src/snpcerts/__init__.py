# SPDX-License-Identifier: Apache-2.0
"""The userspace half of SEV-SNP certificate delivery.

The packages, from the ground up: ``abi`` has layouts and numbers; ``endorsement`` reads and judges
certificates; ``verify`` judges reports; ``kds`` asks AMD's key server; ``mirror`` is a key server
for a fleet; ``certfile`` serves and updates certificate files; ``host`` is the agent; ``vmm``
serves a VMM's exit; ``guest`` requests reports; ``emulator`` is a software SNP platform;
``conformance`` judges VMMs; ``demo`` shows all of them together; ``cli`` is the command line.
``schemas`` describes the commands' JSON.

All packages use the files here. ``exports`` offers a package's public names. ``errors`` has the
tree of errors. ``device_file`` opens a device, and ``device_ioctl`` calls ioctl(2) on it.
``printable`` escapes untrusted text. ``trace`` writes timelines. ``parent_process`` ends a process
when its parent ends. ``uninterrupted`` delays signals until a block ends. ``temporary_directory``
makes directories that are always removed. ``file_date`` returns when a file was written.
``toml_file`` reads TOML and finds the line of a value. ``fidelity`` lists what the emulator claims
about real hosts.
"""

__version__ = "0.1.0"
