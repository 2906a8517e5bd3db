# SPDX-License-Identifier: Apache-2.0
"""What a release consists of, installed where nothing of ours has been."""
