# SPDX-License-Identifier: Apache-2.0
"""The key server's client and cache, against an emulated key server on loopback."""
