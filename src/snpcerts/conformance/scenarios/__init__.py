# SPDX-License-Identifier: Apache-2.0
"""The scenarios, by what they are about. Each runs a VMM of its own."""
