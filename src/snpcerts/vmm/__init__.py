# SPDX-License-Identifier: Apache-2.0
"""The service of KVM_EXIT_SNP_REQ_CERTS."""
