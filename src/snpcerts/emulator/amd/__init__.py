# SPDX-License-Identifier: Apache-2.0
"""AMD: the authority that certifies the emulated chips' keys.

``authority`` is the root with its ASK and ASVK; ``signing`` signs as AMD does;
``leaf_extensions`` is what a VCEK
or VLEK certificate says; ``certificates`` what is issued for the key in use;
``key_server_faults`` the ways a key server goes wrong. The key server itself,
which serves a saved machine, is in ``machine``. Imports ``psp``.
"""
