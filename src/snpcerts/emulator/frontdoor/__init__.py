# SPDX-License-Identifier: Apache-2.0
"""The front door: gives unmodified programs an emulated ``/dev/sev``, ``sev-guest`` and ``kvm``.

A seccomp filter hands a program's device ioctls to a supervisor in another process, which answers
from emulated devices (:mod:`snpcerts.emulator.syscall.device`). The program needs no change, no
library and no privilege, static or not. It finds the devices in one of two ways (``ways``): they
are in its own mount namespace, or the filter traps every call with a path.

``door`` says which paths are emulated; ``bpf`` builds the filter; ``seccomp`` talks to
the kernel; ``supervisor`` serves; ``descriptors`` tracks the descriptors that it gave,
and their end, ``install_fd`` and ``take_fd`` pass descriptors to and from a program;
``tasks`` reads pending signals; ``file_watch`` observes calls on certain files.
``launch`` turns a process into a program under the filter, ``spawn`` starts one from the process
that serves it; ``keeper`` ends its processes; ``control``
lets several launchers share one server; ``parent`` ends a process together with its
parent. For the namespace: ``layout`` is the data that launcher and server exchange,
``namespace`` builds it, ``namespace_devices`` recognises its devices,
``namespace_files`` fills its files; ``tree_server`` serves file systems in it, by the
messages of ``fuse_messages``. For the trap: ``path_calls`` answers calls with a
path, ``paths`` finds the file that it means, ``stat`` builds stat results. Imports
``syscall`` and ``abi``.

How a program can recognise the emulation, in a namespace:

- A device is a terminal's ``ptmx`` by its numbers, its own ioctls, and a read that waits.
- Opening a device never fails; its first ioctl may, with the error of an open.
- A VM's or vCPU's descriptor is a memfd, which can be opened again through ``/proc``
  for as long as the first open lasts.
- It can write to a file of registers (``/dev/cpu/0/msr``), which it has to itself; the
  other files are on read-only mounts, which ``/proc/self/mountinfo`` shows.
- ``/sys/kernel/config`` is a FUSE file system. Where the machine has no ``/dev/fuse``, or
  this user may not open it, it does not exist.
- Users other than root are in a user namespace, with all other users shown as nobody.

With the trap:

- fstat and the link in ``/proc/PID/fd`` show a regular file (a memfd), and an
  ioctl of another type than KVM's and SEV's gets a memfd's answer.
- There is no ``/sys/kernel/config``: what is read and written there cannot be served.
- An emulated directory that the machine does not have cannot be listed, and a
  device it does not have cannot be opened with O_PATH.
- The supervisor examines every path that is opened. A file system that is served
  by a program behind the same door can deadlock; one that does not answer, or
  memory mapped from it, blocks all programs.
- For emulated paths, openat2 supports only the flag RESOLVE_IN_ROOT.
- An open may fail with EINTR where a real one would not, if a signal whose
  handler is installed without SA_RESTART arrives before the supervisor has seen
  the call. The call then had no effect.

In both:

- Setuid programs gain nothing (NO_NEW_PRIVS), io_uring, userfaultfd and 32-bit
  calls do not exist, and a program that wants a seccomp listener of its own gets EBUSY.
"""
