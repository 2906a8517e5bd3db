# SPDX-License-Identifier: Apache-2.0
"""Fixtures that start a mirror, so that the tests see the metrics that it exports."""

from __future__ import annotations

from ..mirror.conftest import amd as amd
from ..mirror.conftest import anchors as anchors
from ..mirror.conftest import milan as milan
from ..mirror.conftest import start as start
from ..mirror.conftest import turin as turin
