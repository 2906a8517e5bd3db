# SPDX-License-Identifier: Apache-2.0
"""Timings: each benchmark measures its subjects in turn in one run and prints ratios."""
