# SPDX-License-Identifier: Apache-2.0
"""The front door: unmodified programs see an emulated ``/dev/sev``, ``sev-guest`` and ``kvm``.

A seccomp filter hands a program's opens and device ioctls to a supervisor in
another process, which answers from emulated devices (:mod:`snpcerts.emulator.device`).
The program needs no change, no library and no privilege, static or not.

``bpf`` builds the filter; ``seccomp`` talks to the kernel; ``paths`` says which
file a path means; ``status`` writes ``struct stat``; ``door`` says which paths
are ours; ``descriptors`` which descriptors; ``supervisor`` serves; ``launch``
puts a program behind the door; ``control`` lets several launchers share one server.
"""
