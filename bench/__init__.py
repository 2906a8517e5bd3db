# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each measures its subjects in rotation, and prints the ratios of their times."""
