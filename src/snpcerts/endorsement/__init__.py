# SPDX-License-Identifier: Apache-2.0
"""X.509 of AMD endorsement keys: VCEK, VLEK, their chains and pinned roots."""
