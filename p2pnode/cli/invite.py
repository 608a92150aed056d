"""`p2pnode invite`."""

from __future__ import annotations

from pathlib import Path

import click

from p2pnode.cli.options import common, home_at, home_option


@click.command()
@click.option("--qr", is_flag=True, help="Also as a QR code, to scan from this screen.")
@home_option
@common
def invite(qr: bool, home: Path | None, debug: bool) -> None:
    """Print the invite of the run that this home joined last: one line to send to somebody."""
    from p2pnode.errors import MachineError
    from p2pnode.invite import Invite

    file = home_at(home).current().invite
    try:
        text = file.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise MachineError(f"{file}: no invite here yet; a node writes it as soon as it can be joined") from None
    found = Invite.parse(text)
    click.echo(found.text)
    if qr:
        from p2pnode.ui.qr import qr_code

        click.echo(qr_code(found.text))
