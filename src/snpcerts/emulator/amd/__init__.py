# SPDX-License-Identifier: Apache-2.0
"""AMD: the authority that certifies the emulated chips' keys.

``authority`` is the root with its ASK and ASVK; ``signing`` signs as AMD does; ``leaf_extensions``
is what a VCEK or VLEK certificate says; ``certificates`` issues certificates for the key in use;
``key_server_faults`` has the ways in which a key server fails. The key server itself, which serves
a saved machine, is in ``machine``. Imports ``psp``, ``endorsement`` and ``abi``.
"""
