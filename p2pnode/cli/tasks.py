"""`p2pnode tasks`."""

from __future__ import annotations

import click

from p2pnode.cli.options import common


@click.command()
@common
def tasks(debug: bool) -> None:
    """List the tasks that are installed: what a run can be about, and what it downloads."""
    from p2pnode.training.registry import summaries

    found = summaries()
    width = max(map(len, found))
    for name, summary in found.items():
        click.echo(f"{name:<{width}}  {' '.join(summary.split())}")
