# SPDX-License-Identifier: Apache-2.0
"""A command group that suggests ``show`` to a user who gives only a file."""

from __future__ import annotations

import os
import shlex

import click


class FileGroup(click.Group):
    """A group whose command ``show`` reads a file."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. If none exists, but a file of that name does, suggest ``show``."""
        name = args[0]
        if self.get_command(ctx, name) is None and os.path.exists(name):
            suggested = f"{ctx.command_path} show {shlex.quote(name)}"
            ctx.fail(f"No such command {name!r}. Did you mean '{suggested}'?")
        return super().resolve_command(ctx, args)
