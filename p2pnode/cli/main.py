"""The entry point: the group of commands, and what an error looks like on the way out."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from p2pnode._version import __version__

PROGRAM: Final = "p2pnode"
MACHINE_FAULTS: Final = frozenset({
    errno.EACCES, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOTDIR, errno.EPERM,
    errno.EROFS,
})  # fmt: skip
INTERRUPTED: Final = 130  # as shells count it: 128 + SIGINT
# Name -> module and attribute: a command is imported when it is called, so `p2pnode --help` stays fast.
COMMANDS: Final = {
    "join": ("p2pnode.cli.join", "join", "Found a run, or join one with its invite, and train."),
    "run": ("p2pnode.cli.run", "run", "Create, sign, show or validate a run's manifest."),
    "tasks": ("p2pnode.cli.tasks", "tasks", "List the tasks, and what they download."),
    "invite": ("p2pnode.cli.invite", "invite", "Print the invite of the run in this home."),
    "identity": ("p2pnode.cli.identity", "identity", "Show, back up or restore this node's identity."),
    "evaluate": ("p2pnode.cli.results", "evaluate", "Measure a saved model on its held-out data."),
    "export": ("p2pnode.cli.results", "export", "Copy the trained model out of this home."),
    "evidence": ("p2pnode.cli.evidence", "evidence", "Verify proof that a peer broke the protocol."),
    "completion": ("p2pnode.cli.completion", "completion", "Print a shell's completion script."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on use; their one-line helps stand in COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f'no command is called "{args[0][:60]}"; {hint}')
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show where an error came from.")
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli(debug: bool) -> None:
    """Train one model together, with no server in the middle.

    \b
    Found a run and print its invite:   p2pnode join
    Join a run that somebody founded:   p2pnode join p2pnode1:...

    What leaves this machine is signed, and noised so that your data stays yours, unless the run's
    founder switched that off (you will see it). Ctrl-C leaves cleanly.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 it failed, 2 what was typed is wrong, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(arguments: Sequence[str]) -> int:
    """As `main`, but returns the exit status."""
    debug = "--debug" in arguments
    if sys.stderr is None:  # closed (`2>&-`): a file that we open must not get its number, and our errors
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stdout is None:
        return _fail("standard output is closed: send it to a file, or to /dev/null", 1, debug)
    try:
        status = cli.main(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return 2
    except click.ClickException as error:
        return _fail(_explain(error), error.exit_code, debug)
    except Exception as error:
        from p2pnode.errors import P2PNodeError

        if isinstance(error, P2PNodeError):
            return _fail(str(error), error.exit_status, debug)
        if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
            where = f"{error.filename}: can't be used" if error.filename else "the output can't be written"
            return _fail(f"{where} ({error.strerror})", 1, debug)
        text = f"unexpected {type(error).__name__}: {_one_line(str(error))[:300]}"
        return _fail(text if debug else f"{text} (--debug shows where; please report it)", 1, debug)


def _fail(message: str, status: int, debug: bool) -> int:
    """Print each line of `message` as an error."""
    if debug:
        import traceback

        traceback.print_exc()
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        _silence_stdout()
    try:
        for line in message.splitlines() or [""]:
            print(f"{PROGRAM}: {_printable(line)}", file=sys.stderr)
    except OSError:
        pass  # nobody reads our errors: the status says enough
    return status


def _explain(error: click.ClickException) -> str:
    """One line; for a bad value, the option first, as in all our errors."""
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param:
        names = [*error.param.opts, error.param.human_readable_name]
        return _one_line(f"{max(names[:-1], key=len, default=names[-1])}: {error.message}")
    return _one_line(error.format_message())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _silence_stdout() -> None:
    """Nobody reads our output any more: keep Python from complaining about it at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
