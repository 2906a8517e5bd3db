# SPDX-License-Identifier: Apache-2.0
"""Reads the JSON that a command printed, and validates it with the published schema."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema

from snpcerts.schemas import schema_of


@functools.cache
def validator(command: str) -> jsonschema.Draft202012Validator:
    """Return a validator that also refuses fields that the schema does not document."""
    return jsonschema.Draft202012Validator(
        _closed(schema_of(command)), format_checker=jsonschema.FormatChecker()
    )


def documented(command: str, text: str) -> Any:
    """Return the JSON in ``text``, which must satisfy the schema of ``command``."""
    value = json.loads(text)
    validator(command).validate(value)
    return value


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed
