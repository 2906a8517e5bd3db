# SPDX-License-Identifier: Apache-2.0
"""AMD's key server (KDS): its URLs, a client, and a cache of what has verified."""
