# SPDX-License-Identifier: Apache-2.0
"""Visits every interleaving and crash of the certificate file's protocol.

The explorer runs the shipped generators (``snpcerts.certfile``), and performs their steps on a
model of files, locks, the disk and the firmware.
"""
