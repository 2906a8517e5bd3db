# SPDX-License-Identifier: Apache-2.0
"""``python -m snpcerts``."""

from snpcerts.cli.main import run

run()
