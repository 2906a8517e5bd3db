# SPDX-License-Identifier: Apache-2.0
"""Guests, firmware and updates at work on one emulated host."""
