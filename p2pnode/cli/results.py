"""`p2pnode evaluate` and `p2pnode export`."""

from __future__ import annotations

from pathlib import Path

import click

from p2pnode.cli.options import (
    PATH,
    common,
    data_dir_option,
    device_option,
    home_at,
    home_option,
    threads_option,
)


@click.command()
@click.argument("model", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@data_dir_option
@device_option
@threads_option
@common
def evaluate(model: Path, as_json: bool, data_dir: Path | None, device: str, threads: int | None, debug: bool) -> None:
    """Measure the saved MODEL (a safetensors file, or the directory of one) on its task's held-out data.

    The manifest is read from manifest.toml beside the model.
    """
    from p2pnode.results import privacy_note, read_model

    saved = read_model(model)

    from p2pnode.training.local import set_threads
    from p2pnode.training.saved import evaluate_saved

    if threads is not None:
        set_threads(threads)
    evaluation, classes = evaluate_saved(saved, data_dir=data_dir, device=device)
    if as_json:
        import json

        from p2pnode.ui.screens import to_json

        click.echo(json.dumps(to_json({
            "measures": evaluation.measures,
            "examples": evaluation.examples,
            "confusion": evaluation.confusion,
            "run_id": saved.manifest.run_id,
            "privacy": privacy_note(saved.manifest),
        })))  # fmt: skip
        return
    from p2pnode.ui.summary import evaluation_lines

    about = {"run": saved.manifest.name, "task": saved.manifest.task.name, "privacy": privacy_note(saved.manifest)}
    for line in evaluation_lines(about, evaluation, classes):
        click.echo(line)


@click.command()
@click.option(
    "--output", "-o", type=PATH, metavar="DIR", help="Directory to write to (default: p2pnode-<run id's start>)."
)
@click.option("--replace", is_flag=True, help="Overwrite files that are there.")
@home_option
@common
def export(output: Path | None, replace: bool, home: Path | None, debug: bool) -> None:
    """Copy the model of the run that this home joined last, with its manifest and its measures beside it."""
    from p2pnode.results import export_run

    files = home_at(home).current()
    for path in export_run(files, output or Path(f"p2pnode-{files.directory.name[:8]}"), replace=replace):
        click.echo(str(path))
