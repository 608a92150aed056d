"""`p2pnode join`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from p2pnode.cli.options import (
    PATH,
    InviteType,
    Parsed,
    TaskName,
    common,
    data_dir_option,
    device_option,
    home_at,
    home_option,
    threads_option,
)


@click.command()
@click.argument("invite", required=False, nargs=-1, metavar="[INVITE]")
@click.option("--task", type=TaskName(), help="Found a run of this task (default: digits).")
@click.option("--manifest", type=PATH, metavar="FILE", help="Found the run that this manifest describes.")
@click.option(
    "--name", type=Parsed("TEXT", "parse_name"), help="The new run's name; when joining, a label for your screen."
)
@click.option(
    "--unsafe-no-privacy",
    is_flag=True,
    help="Found a run that protects nobody's data: what nodes send is not noised.",
)
@click.option(
    "--resume",
    type=Parsed("RUN", "parse_run_prefix"),
    is_flag=False,
    flag_value="",
    help="Go on with a run of this home: the last one, or the one whose id begins with RUN.",
)
@home_option
@data_dir_option
@click.option(
    "--share",
    type=Parsed("K/N", "parse_share"),
    help="Train on part K of N of the data (default: a part that follows from your peer id).",
)
@click.option(
    "--listen",
    type=Parsed("MADDR", "parse_listen_address"),
    multiple=True,
    help="Listen here, e.g. /ip4/0.0.0.0/tcp/31337 (default: all interfaces, any free port). Repeatable.",
)
@click.option(
    "--announce",
    type=Parsed("MADDR", "parse_announce_address"),
    multiple=True,
    help="Tell others this address, e.g. the public one of your router. Repeatable.",
)
@device_option
@threads_option
@click.option("--rounds", type=Parsed("N", "parse_rounds"), help="Leave after N committed rounds.")
@click.option(
    "--until",
    type=Parsed("METRIC>=X", "parse_until", "p2pnode.training.goals"),
    help="Leave when this holds, e.g. 'accuracy>=0.95' (quote it).",
)
@click.option(
    "--for", "for_seconds", type=Parsed("DURATION", "parse_duration"), help="Leave after this time, e.g. 1h30m."
)
@click.option(
    "--screen",
    type=click.Choice(["auto", "full", "plain", "json"]),
    default="auto",
    help="A live screen, plain lines, or one JSON object a line (docs/events.md).",
)
@common
def join(invite: tuple[str, ...], debug: bool, **options: Any) -> int:
    """Train with others.

    With INVITE, the line that somebody sent you, this node joins their run. Without, it founds a new run and prints
    the invite for others. Ctrl-C leaves cleanly; `p2pnode export` then gets you a copy of the model.
    Stopped, or crashed? --resume goes on from where this node was.

    \b
    p2pnode join                              found a run of the built-in task "digits"
    p2pnode join --task mnist-cnn             found a run of another task
    p2pnode join p2pnode1:adr...              join a run
    p2pnode join p2pnode1:adr... --for 2h     ... and leave after two hours
    p2pnode join --resume                     go on with the last run
    """
    launcher = os.getppid()  # before the imports, which take their time

    from p2pnode.config import (
        DEFAULT_LISTEN,
        LeaveChoice,
        NetworkChoice,
        NodeConfig,
        RunChoice,
        WorkChoice,
    )
    from p2pnode.ui.screens import make_screen

    # A paste that broke into several lines arrives as several arguments.
    pasted = InviteType().convert("".join(invite), None, None) if invite else None
    manifest: Path | None = options["manifest"]
    config = NodeConfig(
        home=home_at(options["home"]).path,
        run=RunChoice(
            invite=pasted,
            manifest=manifest,
            task=options["task"],
            name=options["name"],
            unsafe_no_privacy=options["unsafe_no_privacy"],
            resume=options["resume"],
        ),
        network=NetworkChoice(listen=options["listen"] or DEFAULT_LISTEN, announce=options["announce"]),
        work=WorkChoice(
            data_dir=options["data_dir"],
            share=options["share"],
            device=options["device"],
            threads=options["threads"],
        ),
        leave=LeaveChoice(rounds=options["rounds"], until=options["until"], for_seconds=options["for_seconds"]),
        screen=options["screen"],
        debug=debug,
        launcher=launcher,
    )
    if config.work.device not in ("auto", "cpu"):  # at once, not when the run is found or founded
        from p2pnode.training.local import find_device

        find_device(config.work.device)
    screen = make_screen(config.screen, sys.stdout, label=(config.run.name or "") if pasted else "")
    try:
        from p2pnode.node import run_node

        return run_node(config, screen)
    finally:
        screen.close()
        if debug and screen.failure is not None:
            click.echo(f"the screen failed: {screen.failure!r}", err=True)
