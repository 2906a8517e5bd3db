# SPDX-License-Identifier: Apache-2.0
"""The emulated AMD: the authority that certifies the emulated chips' keys.

``authority`` is the root with its ASK and ASVK; ``signing`` signs as AMD does; ``leaf_extensions``
has AMD's extensions of a VCEK or VLEK certificate; ``certificates`` issues certificates for a
platform's keys; ``key_server_faults`` lists how a key server can fail. The key server itself, which
serves a saved machine, is in ``machine``. Imports ``psp``, ``endorsement`` and ``abi``.
"""
