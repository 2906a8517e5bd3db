# SPDX-License-Identifier: Apache-2.0
"""Does a VMM handle KVM_EXIT_SNP_REQ_CERTS as it should? Scripted guests and checks for any VMM."""
