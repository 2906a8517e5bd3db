# SPDX-License-Identifier: Apache-2.0
"""Visit every interleaving and crash of the certificate file's protocol.

What is performed here are the generators that ship (``snpcerts.certfile``); only
who performs their steps differs: a model of files, locks, disk and firmware.
"""
