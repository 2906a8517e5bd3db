# SPDX-License-Identifier: Apache-2.0
"""Compiles released kernels' own code, and compares it with the emulator on the same input."""
