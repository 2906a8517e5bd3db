# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of everything that reads bytes from a host, a guest or a network."""
