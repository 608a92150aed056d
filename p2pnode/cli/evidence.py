"""`p2pnode evidence ...`: proof that a peer broke the protocol, checked with nothing but the file at hand."""

from __future__ import annotations

from pathlib import Path

import click

from p2pnode.cli.options import common


@click.group()
def evidence() -> None:
    """Verify proof that a peer broke the protocol. A node saves it in its home, below runs/ID/evidence."""


@evidence.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@common
def verify(file: Path, debug: bool) -> None:
    """Check FILE: whom it convicts, and of what. Needs no run, no network and no trust in who sent it."""
    from p2pnode.errors import MachineError, PeerFault, UsageError
    from p2pnode.round.evidence import MAX_FILE_BYTES, open_file

    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise MachineError(f"{file}: can't be read ({error.strerror})") from None
    try:
        manifest, found = open_file(raw)
    except PeerFault as fault:
        raise UsageError(f"{file}: proves nothing: {fault}") from None
    click.echo(f"proven     {found.clause}, in round {found.round}")
    click.echo(f"by         {found.accused}")
    click.echo(f"run        {manifest.name} ({manifest.run_id})")
    click.echo(f"digest     {found.digest.hex()}")
