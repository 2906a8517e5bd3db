# SPDX-License-Identifier: Apache-2.0
"""The basis of every emulated device: system calls, their callers, and the callers' memory.

``device``: an ioctl, its caller, its result, a call that waits.
``file_tree``: a file system of the emulator's. ``caller_memory``: the caller's address space.
Imports no other package.
"""
