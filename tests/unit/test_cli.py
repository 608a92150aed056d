"""The command line as people and scripts meet it: real processes, one-line errors, exit statuses, start-up time."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from p2pnode.cli import main as entry
from p2pnode.errors import MachineError
from p2pnode.founding import found_run
from p2pnode.home import Home
from p2pnode.identity import PeerIdentity
from p2pnode.invite import Invite
from p2pnode.manifest_file import load_manifest, sign_manifest
from p2pnode.results import Outcome, write_outcome
from p2pnode.training.parameters import FlatModel
from p2pnode.training.registry import find_task

P2PNODE = [sys.executable, "-c", "from p2pnode.cli.main import main; main()"]
ALICE = PeerIdentity.from_seed(b"a" * 32).peer_id
INVITE = Invite(b"\1" * 32, ALICE, 0, b"\2" * 32, b"\3" * 32, (f"/ip4/192.0.2.1/tcp/1/p2p/{ALICE}",)).text


def p2pnode(*arguments: object, home: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "P2PNODE_HOME"}
    if home is not None:
        environment["P2PNODE_HOME"] = str(home)
    return subprocess.run(
        [*P2PNODE, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=environment, **options
    )


BAD = [
    ["nonsense"],
    ["--nonsense"],
    ["join", "nonsense"],
    ["join", INVITE[:-5]],
    ["join", INVITE, "--task", "digits"],
    ["join", INVITE, "--unsafe-no-privacy"],
    ["join", "--task", "digitz"],
    ["join", "--manifest", "/nonexistent/run.toml", "--task", "digits"],
    ["join", ""],
    ["join", "--home", ""],
    ["join", "--data-dir", ""],
    ["join", "--data-dir", "/nonexistent"],
    ["join", "--task", "mnist-cnn", "--data-dir", "/nonexistent"],
    ["run", "create", "--data-dir", "/nonexistent"],
    ["run", "create", "-o", ""],
    ["join", "--share", "3/2"],
    ["join", "--listen", "localhost:80"],
    ["join", "--announce", "/ip4/192.0.2.1/tcp/0"],
    ["join", "--device", "abacus"],
    ["join", "--threads", "0"],
    ["join", "--rounds", "-1"],
    ["join", "--until", "accuracy"],
    ["join", "--until", "accuracy>=2"],
    ["join", "--until", "loss<=-1"],
    ["join", "--until", "foo>=0.5"],
    ["run", "create", "--set", "training.target_metric='foo>=0.5'"],
    ["run", "create", "--set", "training.target_metric='f1>=95'"],
    ["join", "--for", "soon"],
    ["join", "--screen", "neon"],
    ["join", "--name", "\x1b[31m"],
    ["join", "--rounds"],
    ["run", "create", "digitz"],
    ["run", "create", "--set", "x"],
    ["run", "create", "--set", "training.local_steps=0"],
    ["run", "create", "--set", "privacy.mode=none"],
    ["run", "sign"],
    ["run", "show", "/nonexistent/run.toml"],
    ["run", "validate", "/dev/null"],
    ["run", "nonsense"],
    ["evaluate", "/nonexistent/model"],
    ["completion", "cmd.exe"],
    ["identity", "import"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_a_bad_value_is_one_line_and_exit_status_2(arguments: list[str], tmp_path: Path) -> None:
    done = p2pnode(*arguments, home=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("p2pnode: ") and line.isprintable() for line in lines)
    assert len(lines) == 1 or arguments[:2] == ["run", "validate"]  # a file has a line for each of its problems
    assert "Traceback" not in done.stderr


def test_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    for arguments in (["join", "--share", "3/2", "--debug"], ["--debug", "join", "--share", "3/2"]):
        done = p2pnode(*arguments, home=tmp_path)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("p2pnode: --share: found ")


def test_suggests_what_may_have_been_meant(tmp_path: Path) -> None:
    assert 'did you mean "join"?' in p2pnode("jion").stderr
    assert 'did you mean "digits"?' in p2pnode("join", "--task", "digitz", home=tmp_path).stderr
    assert "--listen" in p2pnode("join", "--lisen", "x").stderr


def test_help_and_version() -> None:
    for arguments in ([], ["join"], ["run"], ["run", "create"], ["run", "sign"], ["run", "show"], ["run", "validate"],
                      ["invite"], ["identity"], ["identity", "show"], ["identity", "export"], ["identity", "import"],
                      ["evaluate"], ["export"], ["completion"], ["tasks"]):  # fmt: skip
        done = p2pnode(*arguments, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: p2pnode")
        assert done.stderr == ""
    assert p2pnode("--version").stdout.startswith("p2pnode 0.")
    for command in entry.COMMANDS:
        assert f"  {command}" in p2pnode("--help").stdout


def best_of(count: int, command: list[str]) -> float:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        times.append(time.perf_counter() - began)
    return min(times)


def test_starts_fast() -> None:
    bare = best_of(5, [sys.executable, "-c", "pass"])
    assert best_of(5, [sys.executable, "-c", "import p2pnode"]) < max(0.3, 3 * bare)
    assert best_of(5, [*P2PNODE, "--help"]) < max(0.5, 6 * bare)
    assert best_of(3, [*P2PNODE, "join", "--help"]) < max(0.5, 6 * bare)


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    heavy = ("torch", "hivemind", "numpy", "pydantic", "rich", "opacus", "dp_accounting", "cryptography", "google")
    code = (
        "import sys, p2pnode.cli.main, p2pnode.cli.join, p2pnode.cli.run, p2pnode.cli.results, p2pnode.cli.identity\n"
    )
    code += f"print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_an_identity_is_shown_backed_up_and_restored(tmp_path: Path) -> None:
    home, other, backup, passphrase = (tmp_path / name for name in ("a", "b", "backup", "passphrase"))
    passphrase.write_text("correct horse\n")
    shown = p2pnode("identity", "show", home=home)
    assert shown.returncode == 0
    peer = shown.stdout.strip()
    assert p2pnode("identity", "show", home=home).stdout.strip() == peer
    assert p2pnode("identity", "show", "--home", home).stdout.strip() == peer
    done = p2pnode("identity", "export", "-o", backup, "--passphrase-file", passphrase, home=home)
    assert done.returncode == 0, done.stderr
    assert backup.stat().st_mode & 0o077 == 0
    assert p2pnode("identity", "export", "-o", backup, "--passphrase-file", passphrase, home=home).returncode == 2
    done = p2pnode("identity", "import", backup, "--passphrase-file", passphrase, home=other)
    assert (done.returncode, done.stdout.strip()) == (0, peer)
    again = p2pnode("identity", "import", backup, "--passphrase-file", passphrase, home=other)
    assert again.returncode == 1
    assert "--replace" in again.stderr
    replaced = p2pnode("identity", "import", "-", "--replace", "--passphrase-file", passphrase, home=other,
                       input=backup.read_text())  # fmt: skip
    assert replaced.returncode == 0
    assert (other / "identity.key.old-1").exists()
    passphrase.write_text("wrong passphrase\n")
    wrong = p2pnode("identity", "import", backup, "--replace", "--passphrase-file", passphrase, home=other)
    assert (wrong.returncode, wrong.stderr) == (1, "p2pnode: wrong passphrase for this backup\n")
    assert not (other / "identity.key.old-2").exists()
    assert "--passphrase-file" in p2pnode("identity", "export", home=home, stdin=subprocess.DEVNULL).stderr


def test_an_identity_is_not_replaced_under_a_running_node(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse")
    p2pnode("identity", "show", home=tmp_path)
    backup = p2pnode("identity", "export", "--passphrase-file", passphrase, home=tmp_path).stdout
    with Home(tmp_path).lock():
        done = p2pnode(
            "identity", "import", "-", "--replace", "--passphrase-file", passphrase, home=tmp_path, input=backup
        )
    assert done.returncode == 1
    assert f"process {os.getpid()}" in done.stderr


def test_the_passphrase_is_asked_for_twice_on_a_terminal(tmp_path: Path) -> None:
    p2pnode("identity", "show", home=tmp_path)
    for second, status in (("correct horse", 0), ("another", 130)):
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["P2PNODE_HOME"] = str(tmp_path)
            os.execv(sys.executable, [*P2PNODE, "identity", "export"])
        seen = b""
        answers = iter(["correct horse\n", f"{second}\n", "\x03"])
        deadline = time.monotonic() + 30
        asked = 0
        while time.monotonic() < deadline:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                break
            seen += data
            if seen.count(b": ") > asked and seen.endswith(b": "):
                asked = seen.count(b": ")
                os.write(terminal, next(answers).encode())
        _, result = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(result) == status, seen
        assert b"correct horse" not in seen
        assert (b"p2pnode identity backup 1" in seen) == (status == 0)


def test_a_manifest_is_created_edited_signed_shown_and_validated(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "run.toml"
    done = p2pnode("run", "create", "digits", "-o", file, "--name", "My run", "--set", "privacy.epsilon=4", home=home)
    assert done.returncode == 0, done.stderr
    manifest, _ = load_manifest(file)
    assert manifest.run_id in done.stdout
    assert manifest.privacy.epsilon == 4
    assert p2pnode("run", "create", "-o", file, home=home).returncode == 2
    assert p2pnode("run", "validate", file, home=home).stdout == f"valid: run {manifest.run_id}\n"
    assert "My run" in p2pnode("run", "show", file, home=home).stdout

    file.write_text(file.read_text().replace("evaluate_every = 1", "evaluate_every = 2"))
    edited = p2pnode("run", "validate", file, home=home)
    assert edited.returncode == 2
    assert "sign it again" in edited.stderr
    assert "NOT VALID" in p2pnode("run", "show", file, home=home).stdout
    assert p2pnode("run", "sign", file, home=home).returncode == 0
    assert p2pnode("run", "validate", file, home=home).returncode == 0
    assert p2pnode("run", "sign", file, "--unsafe-no-privacy", home=home).returncode == 2

    p2pnode("identity", "show", home=tmp_path / "other")
    other = p2pnode("run", "sign", file, home=tmp_path / "other")
    assert other.returncode == 2
    assert "only the author can sign" in other.stderr

    unsafe = p2pnode("run", "create", "--unsafe-no-privacy", home=home)
    assert 'mode = "none"' in unsafe.stdout
    file.write_text(unsafe.stdout)
    assert p2pnode("run", "sign", file, home=home).returncode == 2
    assert p2pnode("run", "sign", file, "--unsafe-no-privacy", home=home).returncode == 0


def test_the_invite_of_this_home(tmp_path: Path) -> None:
    none = p2pnode("invite", home=tmp_path)
    assert none.returncode == 1
    assert "no run was joined" in none.stderr
    home = Home(tmp_path)
    home.set_current("01" * 32)
    files = home.run("01" * 32)
    assert p2pnode("invite", home=tmp_path).returncode == 1
    files.directory.mkdir(parents=True)
    files.invite.write_text(INVITE + "\n")
    assert p2pnode("invite", home=tmp_path).stdout == INVITE + "\n"
    qr = p2pnode("invite", "--qr", home=tmp_path)
    assert qr.stdout.startswith(INVITE + "\n")
    assert len(qr.stdout.splitlines()) > 20
    files.invite.write_text(INVITE[:-3])
    assert "cut off" in p2pnode("invite", home=tmp_path).stderr


def test_a_model_is_exported_and_evaluated(tmp_path: Path) -> None:
    import torch

    identity = PeerIdentity.generate()
    manifest = found_run("digits", identity.peer_id, unsafe_no_privacy=True)
    model = FlatModel(find_task("digits").model(), torch.device("cpu")).model
    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    home = Home(tmp_path / "home")
    home.create()
    home.set_current(manifest.run_id)
    signature = sign_manifest(identity, manifest)
    write_outcome(home.current(), Outcome(manifest, signature, tensors, 3, b"\1" * 32, {"accuracy": 0.1}))
    exported = p2pnode("export", "-o", tmp_path / "out", home=home.path)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.splitlines()[0] == str(tmp_path / "out" / "model.safetensors")
    assert p2pnode("export", "-o", tmp_path / "out", home=home.path).returncode == 2
    measured = p2pnode("evaluate", tmp_path / "out" / "model.safetensors", "--json")
    assert measured.returncode == 0, measured.stderr
    found = json.loads(measured.stdout)
    assert found["run_id"] == manifest.run_id
    assert 0 <= found["measures"]["accuracy"] <= 1
    assert sum(map(sum, found["confusion"])) == found["examples"]
    table = p2pnode("evaluate", tmp_path / "out", "--threads", "1").stdout
    for words in ("accuracy", "precision", "recall", "F1", "Confusion matrix", "NONE: trained without privacy"):
        assert words in table


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a card")
def test_a_device_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    done = p2pnode("join", "--device", "cuda", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "'cuda' is not on this machine" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_lists_the_tasks() -> None:
    done = p2pnode("tasks")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("digits", "mnist-cnn", "mnist-cnn-private", "mnist-deep-cnn", "mnist-mlp"):
        assert any(line.startswith(f"{name} ") and "downloads" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = p2pnode("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_P2PNODE_COMPLETE" in done.stdout


def test_completes_commands_options_and_tasks() -> None:
    def complete(words: str, count: int) -> str:
        environment = {
            **os.environ,
            "_P2PNODE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(count),
        }
        return subprocess.run(P2PNODE, capture_output=True, text=True, timeout=60, env=environment).stdout

    assert "plain,join" in complete("p2pnode jo", 1)
    assert "plain,--screen" in complete("p2pnode join --scr", 2)
    assert "plain,mnist-cnn" in complete("p2pnode join --task mn", 3)


def test_nobody_reads_the_output() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*P2PNODE, "completion", "bash"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1


def test_an_interrupt_outside_the_node_is_quiet(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*P2PNODE, "identity", "import", "-", "--home", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)  # it reads from us by now
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors.strip()) == (130, "", "")  # a line's end after the terminal's "^C"


def test_a_mistake_of_ours_is_one_line_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr("p2pnode.home.Home.current", broken)
    assert entry.run(["invite", "--home", str(tmp_path)]) == 1
    errors = capsys.readouterr().err
    assert errors == "p2pnode: unexpected ZeroDivisionError: one two (--debug shows where; please report it)\n"
    assert entry.run(["invite", "--home", str(tmp_path), "--debug"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_errors_that_are_not_about_what_was_typed_exit_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(*_: object) -> None:
        raise MachineError("the disk is on fire\x1b[31m")

    monkeypatch.setattr("p2pnode.home.Home.current", missing)
    assert entry.run(["invite", "--home", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "p2pnode: the disk is on fire?[31m\n"


@pytest.mark.parametrize(
    ("redirected", "words"), [(">&-", "standard output is closed"), ("> /dev/full", "No space left on device")]
)
def test_an_output_that_takes_nothing_is_one_line(redirected: str, words: str, tmp_path: Path) -> None:
    command = f'exec "$0" -m p2pnode identity show --home {tmp_path} {redirected}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "report" not in done.stderr


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/home", "/proc/home"])
def test_a_home_that_can_not_be_written_is_one_line(home: str) -> None:
    for command in (("identity", "show"), ("run", "create"), ("join", "--for", "1")):
        done = p2pnode(*command, "--home", home)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"p2pnode: {home}")
        assert len(done.stderr.splitlines()) == 1
        assert "report" not in done.stderr
