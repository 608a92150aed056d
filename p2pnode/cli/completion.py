"""`p2pnode completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from p2pnode.cli.options import common


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@common
def completion(shell: str, debug: bool) -> None:
    """Print the script that completes p2pnode's commands and options in your shell.

    \b
    bash:  echo 'eval "$(p2pnode completion bash)"' >> ~/.bashrc
    zsh:   echo 'eval "$(p2pnode completion zsh)"' >> ~/.zshrc
    fish:  p2pnode completion fish > ~/.config/fish/completions/p2pnode.fish
    """
    from p2pnode.cli.main import PROGRAM, cli

    maker = get_completion_class(shell)
    if maker is None:
        raise click.UsageError(f"no completion for {shell}")
    complete = maker(cli, {}, PROGRAM, "_P2PNODE_COMPLETE")
    # Not `source()`: for bash it starts bash to look at its version, and warns about the wrong one's.
    click.echo(complete.source_template % complete.source_vars())
