"""Three real node processes train `digits` together: one founds the run, the others join by its invite.

Each holds a third of the training data, noises all that it sends, and counts what that costs its privacy. Ends with a
table, the same state digest on all nodes, and a line RESULT.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from p2pnode.swarm.process import NodeFailed, NodeProcess
from p2pnode.ui.text import count as count_of

ACCURACY, EPSILON, ROUNDS, SECONDS = 0.94, 8.0, 20, 180.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes (default: 3)")
    options = parser.parse_args()
    nodes: list[NodeProcess] = []
    with tempfile.TemporaryDirectory(prefix="p2pnode-demo-") as folder:
        try:
            return run(Path(folder), options.nodes, nodes)
        except KeyboardInterrupt:
            return 130
        finally:
            for node in nodes:
                node.kill()


def run(folder: Path, count: int, nodes: list[NodeProcess]) -> int:
    began = time.monotonic()
    manifest = folder / "digits.toml"
    homes = [folder / f"node{number}" for number in range(1, count + 1)]
    print(f"Founding a run of `digits`: {count} nodes, each with 1/{count} of the training data, privacy on.")
    create = [sys.executable, "-m", "p2pnode", "run", "create", "digits", "--home", str(homes[0]), "-o", str(manifest)]
    subprocess.run([*create, "--set", f"roster.start_with={count}"], check=True, stdout=subprocess.DEVNULL)
    events: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()

    def start(number: int, *how: str) -> None:
        arguments = [*how, "--share", f"{number}/{count}", "--threads", "1"]
        tell = partial(lambda number, event: events.put((number, event)), number)
        nodes.append(NodeProcess(homes[number - 1], arguments, on_event=tell))

    start(1, "--manifest", str(manifest))
    ended: set[int] = set()
    shown = 0
    while len(ended) < max(1, len(nodes)):
        left = SECONDS - (time.monotonic() - began)
        try:
            number, event = events.get(timeout=max(0.1, left))
        except queue.Empty:
            print("It takes too long: given up.", file=sys.stderr)
            break
        kind = event["event"]
        if kind == "ended":
            ended.add(number)
        elif kind == "started" and number == 1:
            print(f"Node 1 founded it; the others join by its invite:\n\n  {event['invite']}\n")
            for other in range(2, count + 1):
                start(other, event["invite"])
        elif kind == "joined":
            print(f"Node {number} joined after {event['seconds']:.1f} s.")
        elif kind in ("discarded", "rejected"):
            print(f"Node {number}: {kind}: {event.get('reason') or event.get('clause')}")
        elif kind == "round" and event["round"] > shown:
            shown = event["round"]
            print(
                f"round {shown:2d}  {count_of(event['peers'], 'contributor')}  {count_of(event['voters'], 'voter')}  "
                f"accuracy {event['accuracy']:.4f}  epsilon {event['epsilon']:.3f}  "
                f"state {event['state_digest'][:16]}  {event['seconds']:.2f} s"
            )
    return summarise(nodes, count, time.monotonic() - began)


def summarise(nodes: list[NodeProcess], count: int, seconds: float) -> int:
    print(f"\nnode  {'peer':8}  rounds  accuracy  epsilon  {'sent':>9}  {'received':>9}  state")
    for number, node in enumerate(nodes, 1):
        rounds = [event for event in node.events if event["event"] == "round"]
        result, stopped, started = node.last("result"), node.last("stopped"), node.last("started")
        print(
            f"{number:>4}  {str(started.get('peer_id'))[-8:]:8}  {len(rounds):>6}  "
            f"{result.get('measures', {}).get('accuracy', float('nan')):>8.4f}  "
            f"{stopped.get('epsilon') or float('nan'):>7.3f}  "
            f"{sum(e['bytes_sent'] for e in rounds) / 1024:>6.0f} KB  "
            f"{sum(e['bytes_received'] for e in rounds) / 1024:>6.0f} KB  {str(result.get('state_digest'))[:16]}"
        )
    measures = nodes[0].last("result").get("measures", {})
    print("\n" + "  ".join(f"{name} {value:.4f}" for name, value in sorted(measures.items())) + "\n")
    problems = []
    for number, node in enumerate(nodes, 1):
        with contextlib.suppress(NodeFailed):
            node.wait(10)
        if node.process.returncode != 0:
            problems.append(f"node {number} ended with status {node.process.returncode}: {node.errors[-3:]}")
        if node.leftovers():
            problems.append(f"node {number} left a process behind")
    by_round = [node.digests() for node in nodes]
    finals = {node.last("result").get("state_digest") for node in nodes}
    same = all(len({found[number] for found in by_round if number in found}) == 1 for number in by_round[0])
    digests_equal = len(nodes) == count and len(finals) == 1 and None not in finals and same
    accuracy = min((node.last("result").get("measures", {}).get("accuracy", 0.0) for node in nodes), default=0.0)
    epsilon = max((node.last("stopped").get("epsilon") or float("inf") for node in nodes), default=float("inf"))
    most_rounds = max((number for found in by_round for number in found), default=0)
    if not digests_equal:
        problems.append("the nodes' state digests are not all equal")
    if accuracy < ACCURACY:
        problems.append(f"accuracy {accuracy:.4f} is below {ACCURACY}")
    if epsilon > EPSILON:
        problems.append(f"epsilon {epsilon:.4f} is above {EPSILON}")
    if most_rounds > ROUNDS:
        problems.append(f"{most_rounds} rounds are more than {ROUNDS}")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    print(
        f"RESULT accuracy={accuracy:.4f} epsilon={epsilon:.4f} "
        f"digests_equal={str(digests_equal).lower()} seconds={seconds:.1f}"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
