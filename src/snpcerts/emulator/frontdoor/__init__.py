# SPDX-License-Identifier: Apache-2.0
"""The front door, which gives unmodified programs an emulated ``/dev/sev``, ``/dev/sev-guest`` and
``/dev/kvm``.

A seccomp filter passes a program's device ioctls to a supervisor in another process, which answers
them with emulated devices (:mod:`snpcerts.emulator.syscall.device`). The program needs no change,
no library and no privilege, even if it is statically linked. There are two ways (``ways``) to show
it the devices: they are in its own mount namespace, or the filter traps every call with a path.

``door`` recognises emulated paths; ``bpf`` builds the filter; ``seccomp`` talks to the kernel;
``supervisor`` serves the trapped calls. ``descriptors`` tracks the descriptors that programs have
and when they are closed; ``install_fd`` and ``take_fd`` pass descriptors to and from a program.
``tasks`` reads pending signals; ``file_watch`` observes calls on certain files. ``launch`` turns a
process into a program under the filter; ``spawn`` starts one from the process that serves it;
``keeper`` ends its processes. ``control`` lets several launchers share one server. For the
namespace: ``layout`` is the data that launcher and server exchange, ``namespace`` builds the
namespace, ``namespace_devices`` recognises its devices, ``namespace_files`` fills its files
(``exchange`` exchanges two names), and ``tree_server`` serves file systems in it, with the messages
of ``fuse_messages``. For the trap: ``path_calls`` answers calls with a path, ``paths`` finds the
file that a path names, ``stat`` builds stat results. Imports ``syscall`` and ``abi``.

How a program can recognise the emulation, in a namespace:

- A device has the device number, the ioctls and the blocking read of a terminal's ``ptmx``.
- Opening a device never fails. An error that the open should have returned comes from the first
  ioctl instead.
- A VM's or vCPU's descriptor is a memfd, which can be opened again through ``/proc``
  until the first open is closed.
- The program can write to its own copy of a file of registers (``/dev/cpu/0/msr``). The
  other files are on read-only mounts, which ``/proc/self/mountinfo`` shows.
- ``/sys/kernel/config`` is a FUSE file system. It does not exist if the machine has no
  ``/dev/fuse``, or this user may not open it.
- Users other than root are in a user namespace, in which all other users appear as nobody.

With the trap:

- fstat and the link in ``/proc/PID/fd`` show a regular file (a memfd), and an
  ioctl whose type is not KVM's or SEV's gets a memfd's answer.
- There is no ``/sys/kernel/config``, because the trap cannot serve reads and writes there.
- An emulated directory that the machine does not have cannot be listed, and a
  device it does not have cannot be opened with O_PATH.
- The supervisor examines every path that is opened. A file system that is served
  by a program behind the same door can deadlock. One that does not answer, or
  memory mapped from it, blocks all programs.
- For emulated paths, openat2 supports only the flag RESOLVE_IN_ROOT.
- An open can fail with EINTR where a real one would not, if a signal whose
  handler is installed without SA_RESTART arrives before the supervisor has seen
  the call. The call has then had no effect.

In both:

- Setuid programs gain no privileges (NO_NEW_PRIVS). io_uring, userfaultfd and 32-bit
  calls do not exist. A program that installs its own seccomp listener gets EBUSY.
"""
