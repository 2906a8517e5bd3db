# SPDX-License-Identifier: Apache-2.0
"""Tests that install the packages of a release on systems that have never had snpcerts."""
