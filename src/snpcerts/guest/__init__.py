# SPDX-License-Identifier: Apache-2.0
"""Report clients for programs inside an SNP guest."""
