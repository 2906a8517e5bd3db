# SPDX-License-Identifier: Apache-2.0
"""The certificate file: its lock protocol, publishing and serving."""
