# SPDX-License-Identifier: Apache-2.0
"""The scenarios, by topic. Each one runs its own VMM."""
