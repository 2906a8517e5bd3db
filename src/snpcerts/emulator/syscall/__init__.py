# SPDX-License-Identifier: Apache-2.0
"""The basis of every emulated device: system calls, their callers, and the callers' memory.

``device`` declares what a device is: its ioctls, their callers and results, and calls that wait.
``file_tree`` is an emulated file system. ``caller_memory`` is the caller's address space;
``same_memory`` says whether two processes have the same one. Imports no other package.
"""
