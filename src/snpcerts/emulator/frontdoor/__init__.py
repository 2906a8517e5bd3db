# SPDX-License-Identifier: Apache-2.0
"""The front door: unmodified programs see an emulated ``/dev/sev``, ``sev-guest`` and ``kvm``.

A seccomp filter hands a program's opens and device ioctls to a supervisor in
another process, which answers from emulated devices (:mod:`snpcerts.emulator.syscall.device`).
The program needs no change, no library and no privilege, static or not.

``bpf`` builds the filter; ``seccomp`` talks to the kernel. ``supervisor`` serves:
``paths`` finds the file that a path means, ``door`` which paths are emulated,
``path_calls`` answers calls with a path, ``stat`` builds their stat results;
``descriptors`` tracks emulated descriptors and their end, ``install_fd`` and
``take_fd`` pass descriptors to and from a program; ``tasks`` reads pending signals;
``file_watch`` observes calls on certain files. ``launch`` puts a program behind the
door; ``keeper`` ends its processes; ``control`` lets several launchers share one
server; ``parent`` ends a process together with its parent. Imports ``syscall``.

How a program can recognise the emulation:

- fstat and the link in ``/proc/PID/fd`` show a regular file (a memfd), and an
  ioctl of another type than KVM's and SEV's gets a memfd's answer.
- An emulated directory that the machine does not have cannot be listed, and a
  device it does not have cannot be opened with O_PATH.
- For emulated paths, openat2 supports only the flag RESOLVE_IN_ROOT.
- An open may fail with EINTR where a real one would not, if a signal whose
  handler is installed without SA_RESTART arrives before the supervisor has seen
  the call. The call then had no effect.
- Setuid programs gain nothing (NO_NEW_PRIVS), io_uring, userfaultfd and 32-bit
  calls do not exist, and a program that wants a seccomp listener of its own gets EBUSY.
- The supervisor examines every path that is opened. A file system that is served
  by a program behind the same door can deadlock; one that does not answer, or
  memory mapped from it, blocks all programs.
"""
