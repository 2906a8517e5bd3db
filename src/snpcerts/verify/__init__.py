# SPDX-License-Identifier: Apache-2.0
"""Report, certificates and time in; a verdict with reasons out. Pure: no I/O."""
