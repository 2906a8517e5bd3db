# SPDX-License-Identifier: Apache-2.0
"""The userspace half of SEV-SNP certificate delivery."""

__version__ = "0.1.0"
