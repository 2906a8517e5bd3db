# SPDX-License-Identifier: Apache-2.0
"""Runs guests, firmware and updates together on one emulated host."""
