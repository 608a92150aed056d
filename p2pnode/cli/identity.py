"""`p2pnode identity show|export|import`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from p2pnode.cli.options import PATH, common, home_at, home_option

passphrase_option = click.option(
    "--passphrase-file", type=PATH, metavar="FILE", help="Read the passphrase from this file's first line, don't ask."
)


@click.group()
def identity() -> None:
    """This node's identity: the key with which it signs, and by which others know it."""


@identity.command(short_help="Print this node's peer id.")
@home_option
@common
def show(home: Path | None, debug: bool) -> None:
    """Print this node's peer id; makes an identity if there is none yet."""
    from p2pnode.identity import PeerIdentity

    click.echo(PeerIdentity.load_or_create(home_at(home).identity).peer_id.text)


@identity.command("export", short_help="Write an encrypted backup.")
@click.option("--output", "-o", type=PATH, metavar="FILE", help="Write to this file (default: standard output).")
@passphrase_option
@home_option
@common
def export_(output: Path | None, passphrase_file: Path | None, home: Path | None, debug: bool) -> None:
    """Write a backup of the identity, encrypted with a passphrase of your choice."""
    from p2pnode.home import write_new
    from p2pnode.identity import PeerIdentity
    from p2pnode.identity_backup import export_identity

    found = PeerIdentity.load(home_at(home).identity)
    text = export_identity(found, _passphrase(passphrase_file, confirm=True))
    if output is None:
        click.echo(text, nl=False)
    else:
        write_new(output, text.encode(), mode=0o600)
        click.echo(f"{found.peer_id.text}: backup written to {output}", err=True)
    ledgers = home_at(home).ledgers
    click.echo(f"not in it: what this data's privacy has cost so far; copy the directory {ledgers} too", err=True)


@identity.command("import", short_help="Restore a backup.")
@click.argument("file", type=PATH)
@click.option("--replace", is_flag=True, help="Replace the identity that is there; the old one is kept aside.")
@passphrase_option
@home_option
@common
def import_(file: Path, replace: bool, passphrase_file: Path | None, home: Path | None, debug: bool) -> None:
    """Restore the identity from the backup FILE (`-`: standard input)."""
    from p2pnode.errors import IdentityError
    from p2pnode.identity_backup import MAX_BACKUP_BYTES, import_identity, peer_of_backup, restore_identity

    try:
        if str(file) == "-":
            text = sys.stdin.read(MAX_BACKUP_BYTES + 1)
        else:
            with file.open(encoding="utf-8") as stream:
                text = stream.read(MAX_BACKUP_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"{file}: can't be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    peer_of_backup(text)  # before anybody types a passphrase
    node = home_at(home)
    with node.lock():
        aside = restore_identity(lambda: import_identity(text, _passphrase(passphrase_file)), node.identity, replace)
    if aside is not None:
        click.echo(f"the identity that was there is now {aside}", err=True)
    click.echo(peer_of_backup(text).text)
    click.echo(
        f"a backup holds no privacy ledger: if this identity trained before, copy its old home's directory ledgers to "
        f"{node.ledgers}, or what was spent on its data is not counted",
        err=True,
    )


def _passphrase(file: Path | None, confirm: bool = False) -> str:
    from p2pnode.errors import UsageError

    if file is None:
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask for a passphrase: use --passphrase-file")
        return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))
    try:
        with file.open(encoding="utf-8") as stream:
            return stream.readline(1024).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: can't be read ({getattr(error, 'strerror', None) or 'not text'})") from None
