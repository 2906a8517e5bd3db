# SPDX-License-Identifier: Apache-2.0
"""The command line: one thin module per command group, imported when it is called."""
