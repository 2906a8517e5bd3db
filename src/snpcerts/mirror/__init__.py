# SPDX-License-Identifier: Apache-2.0
"""A mirror of AMD's key server for a fleet: it asks AMD once for each certificate."""
