"""`p2pnode run create|sign|show|validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pnode.cli.options import PATH, Parsed, TaskName, common, data_dir_option, home_at, home_option

unsafe_option = click.option(
    "--unsafe-no-privacy", is_flag=True, help="The run protects nobody's data: what nodes send is not noised."
)


@click.group()
def run() -> None:
    """Make and check manifests: files that say all that the nodes of a run must agree on.

    `p2pnode join --manifest FILE` founds the run that a manifest describes.
    """


@run.command(short_help="Write a new run's manifest.")
@click.argument("task", type=TaskName(), default="digits")
@click.option("--output", "-o", type=PATH, metavar="FILE", help="Write to this file (default: standard output).")
@click.option("--name", type=Parsed("TEXT", "parse_name"), help="The run's name (default: the task's).")
@click.option(
    "--set",
    "settings",
    type=Parsed("SECTION.FIELD=VALUE", "parse_setting", "p2pnode.founding"),
    multiple=True,
    help="Change a field, e.g. --set training.local_steps=10 --set privacy.epsilon=3. Repeatable.",
)
@unsafe_option
@data_dir_option
@home_option
@common
def create(task: str, output: Path | None, home: Path | None, debug: bool, **options: Any) -> None:
    """Write the manifest of a new run of TASK (default: digits), signed with this home's identity.

    Noise is calibrated to the promised epsilon and delta. Edit the file as you like, then `p2pnode run sign` it again.
    """
    from p2pnode.founding import found_run, settings_to_overrides
    from p2pnode.home import write_new
    from p2pnode.identity import PeerIdentity
    from p2pnode.manifest_file import dump_manifest, sign_manifest

    identity = PeerIdentity.load_or_create(home_at(home).identity)
    manifest = found_run(
        task,
        identity.peer_id,
        unsafe_no_privacy=options["unsafe_no_privacy"],
        name=options["name"],
        overrides=settings_to_overrides(options["settings"]),
        data_dir=options["data_dir"],
    )
    text = dump_manifest(manifest, sign_manifest(identity, manifest))
    if output is None:
        click.echo(text, nl=False)
    else:
        write_new(output, text.encode())
        click.echo(f"run {manifest.run_id}\nwritten to {output}; start it with: p2pnode join --manifest {output}")


@run.command(short_help="Sign a manifest that you edited.")
@click.argument("file", type=PATH)
@unsafe_option
@home_option
@common
def sign(file: Path, unsafe_no_privacy: bool, home: Path | None, debug: bool) -> None:
    """Sign the manifest FILE, in place, with this home's identity, which must be its author.

    It is checked first. Comments of your own are not kept: the file is written anew.
    """
    from p2pnode.founding import check_plan, check_run, require_consent
    from p2pnode.home import write_atomically
    from p2pnode.identity import PeerIdentity
    from p2pnode.manifest_file import dump_manifest, load_manifest, sign_manifest

    identity = PeerIdentity.load(home_at(home).identity)
    manifest, _ = load_manifest(file)
    require_consent(manifest, unsafe_no_privacy)
    signature = sign_manifest(identity, manifest)
    check_run(manifest)
    check_plan(manifest)
    write_atomically(file, dump_manifest(manifest, signature).encode())
    click.echo(f"signed: run {manifest.run_id}")


@run.command(short_help="Say in short what a manifest means.")
@click.argument("file", type=PATH, required=False)
@home_option
@common
def show(file: Path | None, home: Path | None, debug: bool) -> None:
    """Say in short what a manifest means: FILE, or the run that this home joined last."""
    from p2pnode.founding import describe
    from p2pnode.manifest_file import load_manifest

    manifest, signature = load_manifest(home_at(home).current().manifest if file is None else file)
    for line in describe(manifest, signature):
        click.echo(line)


@run.command(short_help="Check a manifest.")
@click.argument("file", type=PATH)
@data_dir_option
@common
def validate(file: Path, data_dir: Path | None, debug: bool) -> None:
    """Check the manifest FILE: its fields, its signature, its task, its privacy promise and the data set."""
    from p2pnode.errors import DataError
    from p2pnode.founding import check_data, check_plan, check_run
    from p2pnode.manifest_file import load_manifest, verify_manifest

    manifest, signature = load_manifest(file)
    if signature is not None:
        verify_manifest(manifest, signature)
    check_run(manifest)
    check_plan(manifest)
    notes = [] if signature is not None else ["not signed yet (`p2pnode run sign`)"]
    try:
        check_data(manifest, data_dir)
    except DataError as error:
        if data_dir is not None:
            raise
        notes.append(f"the data was not checked ({error})")
    click.echo("\n".join([f"valid: run {manifest.run_id}", *notes]))
