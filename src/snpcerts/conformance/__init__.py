# SPDX-License-Identifier: Apache-2.0
"""Judges how any VMM handles KVM_EXIT_SNP_REQ_CERTS, with scripted guests and checks."""
