# SPDX-License-Identifier: Apache-2.0
"""The released kernel's own code, compiled and run beside the emulator on the same input."""
