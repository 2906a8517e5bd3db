# SPDX-License-Identifier: Apache-2.0
"""The front door: unmodified programs see an emulated ``/dev/sev``, ``sev-guest`` and ``kvm``.

A seccomp filter hands a program's opens and device ioctls to a supervisor in
another process, which answers from emulated devices (:mod:`snpcerts.emulator.syscall.device`).
The program needs no change, no library and no privilege, static or not.

``bpf`` builds the filter; ``seccomp`` talks to the kernel; ``paths`` says which
file a path means; ``door`` which paths are ours; ``stat`` what stat says of
them; ``descriptors`` which descriptors are ours, and when they are gone;
``tasks`` which signals wait; ``supervisor`` serves; ``launch`` puts a program
behind the door; ``control`` lets several launchers share one server;
``parent`` ends a process with the one that started it.

What a program can tell from the real thing:

- fstat and the link in ``/proc/PID/fd`` show a regular file (a memfd), and an
  ioctl of another type than KVM's and SEV's gets a memfd's answer.
- A directory of ours that the machine does not have cannot be listed, and a
  device it does not have cannot be opened with O_PATH.
- Of openat2's RESOLVE flags only RESOLVE_IN_ROOT counts for a path of ours.
- An open may end with EINTR where a real one would not, if a signal whose
  handler is installed without SA_RESTART comes before the supervisor has seen
  the call. It has then had no effect.
- Setuid programs gain nothing (NO_NEW_PRIVS), io_uring, userfaultfd and 32-bit
  calls do not exist, and a program that wants a seccomp listener of its own gets EBUSY.
- The supervisor looks at every path that is opened. A file system that is
  served by a program behind the same door can wait for itself; one that does
  not answer at all, or memory mapped from it, keeps all programs waiting.
"""
