"""The node: puts the parts together and follows their lives. No protocol, no arithmetic, no policy of its own.

identity, manifest -> transport -> verified state -> rounds: train, offer, follow, evaluate -> leave
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Coroutine
from typing import Any, Final, NoReturn, TypeVar

from p2pnode.config import NodeConfig
from p2pnode.errors import ArithmeticMismatch, BudgetSpent, NetworkError, P2PNodeError, PeerFault
from p2pnode.exchange import Adopted, GradientExchange, Journal
from p2pnode.home import Home, write_atomically
from p2pnode.identity import PeerId, PeerIdentity
from p2pnode.manifest import RunManifest
from p2pnode.manifest_file import dump_manifest
from p2pnode.node.catching_up import CatchUp
from p2pnode.node.finding import Run, Way, fetch, first_state, found, known_run, make_transport, recall
from p2pnode.node.inviting import Inviter
from p2pnode.node.keeping import Keeper, Saver, Spent
from p2pnode.node.leaving import linger, save
from p2pnode.node.listening import remember_port
from p2pnode.node.members import Members
from p2pnode.node.reporting import Reporter
from p2pnode.node.starting import Beginning, Voices
from p2pnode.node.stopping import Stopping, watch_for_stop
from p2pnode.node.telling import tell_evidence, tell_outcome, tell_started
from p2pnode.node.work import Worker
from p2pnode.replica.state import GlobalState
from p2pnode.round.effects import Behind, Committed, Convicted, Halt
from p2pnode.round.rules import Rules
from p2pnode.sync import History, SyncServer
from p2pnode.transport.base import Transport
from p2pnode.ui.events import EventSink

T = TypeVar("T")

FINISH_SECONDS: Final = 3.0  # given to the round in progress when we leave
LINGER_SECONDS: Final = 5.0  # given to others to fetch the last round from us


def run_node(config: NodeConfig, sink: EventSink) -> int:
    """Run one node until it leaves; the exit status. Raises P2PNodeError for what a person must know."""
    gc.disable()  # looking for garbage among all that torch and hivemind bring in costs a fifth of the start
    try:
        return asyncio.run(_run(config, sink))
    finally:
        gc.enable()


async def _run(config: NodeConfig, sink: EventSink) -> int:
    stopping = Stopping()
    async with watch_for_stop(stopping, config.leave.for_seconds, config.launcher):
        home = Home(config.home)
        with home.lock():
            identity = PeerIdentity.load_or_create(home.identity)
            node = Node(config, sink, home, identity, stopping)
            try:
                await node.run()
            except _Stopped:
                sink.emit("stopped", reason=stopping.reason, round=None, state_digest=None, epsilon=None, delta=None)
            finally:
                await node.close()
    return 0


class _Stopped(Exception):
    """We were told to stop before we had joined."""


class Node:
    """One node of one run."""

    def __init__(
        self, config: NodeConfig, sink: EventSink, home: Home, identity: PeerIdentity, stopping: Stopping
    ) -> None:
        self._config = config
        self._sink = sink
        self._home = home
        self._identity = identity
        self._stopping = stopping
        self._started = time.monotonic()
        self._transport: Transport | None = None
        self._worker: Worker | None = None
        self._exchange: GradientExchange | None = None
        self._history: History | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._round_began = asyncio.Event()  # there may be local work to do
        self._joined_at = 0  # round
        self._target = 0  # the run's last round; 0: none
        self._samples = 0
        self._epsilon: float | None = None
        self._failure: P2PNodeError | None = None

    async def run(self) -> None:
        """From nothing to having left."""
        run, transport = await self._find()
        write_atomically(run.files.manifest, dump_manifest(run.manifest, run.signature).encode())
        remember_port(transport.addresses(), run.files.port)
        self._home.set_current(run.manifest.run_id)
        opening = asyncio.to_thread(Worker.open, run.manifest, self._home, self._config.work, self._identity.peer_id)
        worker = self._worker = await self._unless_stopped(opening)
        server = SyncServer(run.manifest, run.signature)
        server.register(transport)
        self._epsilon = worker.spent()
        self._notice(f"this node trains on share {worker.share} of the data: {worker.examples} examples")
        gc.freeze()  # what is loaded stays: no need to look through it again
        gc.enable()
        await self._take_part(run, transport, worker, server)

    async def close(self) -> None:
        """End everything that `run` began. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._exchange is not None:
            await self._exchange.stop()
        if self._transport is not None:
            await self._transport.stop()
            self._transport = None
        if self._worker is not None:
            self._worker.close()
        if self._history is not None:
            self._history.close()

    # finding the run

    async def _find(self) -> tuple[Run, Transport]:
        invite = self._config.run.invite
        files = known_run(self._config.run, self._home)
        if files is None and invite is not None:
            self._notice("looking for the run's peers")
            transport = await self._unless_stopped(self._connect(Way(invite.run, invite.addresses)))
            run = await self._unless_stopped(fetch(transport, invite, self._home, self._debug))
            self._notice(f'found run "{run.manifest.name}": loading its task and data')
            return run, transport
        if files is not None:
            self._notice("taking up a run that this node took part in before: loading its task and data")
            finding = asyncio.to_thread(recall, files, self._home, invite)
        else:
            self._notice("making the run: loading its task, calibrating its noise")
            finding = asyncio.to_thread(found, self._config, self._home, self._identity)
        run = await self._unless_stopped(finding)
        way = Way(run.manifest.digest, remembered=run.ways or ())
        return run, await self._unless_stopped(self._connect(way))

    async def _connect(self, way: Way) -> Transport:
        self._transport = await asyncio.to_thread(
            make_transport, self._config, self._home, self._identity, way, self._notice
        )
        self._transport.on_violation(self._on_violation)
        await self._transport.start()
        return self._transport

    def _on_violation(self, peer: PeerId, clause: str) -> None:
        running = self._exchange is not None and self._exchange.running
        number = self._require(self._exchange).machine.round if running else None
        self._sink.emit("rejected", clause=clause, peer=peer.text, round=number)

    # taking part

    async def _take_part(self, run: Run, transport: Transport, worker: Worker, server: SyncServer) -> None:
        manifest = run.manifest
        rules, journal = Rules(manifest, worker.values), Journal(run.files.journal)
        exchange = self._exchange = GradientExchange(rules, self._identity, transport, journal)
        inviter = Inviter(run, transport)

        def tell(number: int, state_digest: bytes, roster_digest: bytes) -> None:
            tell_started(self._sink, run, self._home, transport, inviter.at(number, state_digest, roster_digest))

        beginning = Beginning(run, rules, transport, journal, Voices(tell, self._notice, self._debug))
        begin = beginning.begin(lambda: first_state(manifest, worker, self._identity))
        begun = await self._unless_stopped(begin)
        state, history = begun.state, begun.history
        self._history = history
        server.serve(history)
        server.add(state)
        inviter.write(state, time.monotonic())
        reporter = Reporter(self._sink, manifest, worker, self._on_measured)
        members = Members(transport, self._home, manifest.digest, self._sink)
        saver = Saver(beginning.states, history)
        keeper = Keeper(server, reporter, inviter, members, manifest, run.files.directory / "evidence", saver)
        self._sink.emit(
            "joined",
            round=state.round,
            state_digest=state.digest,
            voters=len(state.roster.members),
            provisional=begun.provisional,
            seconds=time.monotonic() - self._started,
        )
        self._joined_at, self._target = state.round, manifest.training.target_rounds
        exchange.on_certified = keeper.keep
        exchange.start(state, history.tip, history.record_at(state.round))
        catch_up = CatchUp(manifest, exchange, transport, history, server, saver.states, self._debug)
        self._spawn(saver.run())
        self._spawn(members.run(lambda: exchange.machine.state))
        self._spawn(reporter.run())
        self._spawn(self._work(exchange, worker))
        self._spawn(self._follow(exchange, transport, keeper, catch_up))
        self._spawn(catch_up.watch())
        self._spawn(exchange.ticking())
        self._stop_at_end(state.round)
        await self._stopping.wait()
        await self._leave(run, exchange, worker, reporter)

    async def _work(self, exchange: GradientExchange, worker: Worker) -> None:
        """Local work, round after round."""
        while not self._stopping.requested():
            machine = exchange.machine
            number, state = machine.round, machine.state
            if not machine.wants_update or self._end(state.round):
                self._round_began.clear()
                await self._round_began.wait()
                continue

            def cancelled(number: int = number) -> bool:
                return self._stopping.requested() or not exchange.running or exchange.machine.round != number

            self._sink.emit("training", round=number)
            try:
                result = await worker.train(state.parameters, number, cancelled)
            except BudgetSpent as error:
                self._notice(str(error))
                self._stopping.request("the privacy budget is spent")
                return
            self._epsilon = result.epsilon
            if self._stopping.requested():
                return
            if exchange.machine.round != number or not result.complete:
                reason = "the others certified the round without our update"
                self._sink.emit("discarded", round=number, attempt=None, reason=reason)
                continue
            self._samples = result.samples
            if self._end(number):
                machine.prepare_to_leave()
            try:
                exchange.offer(result.update)
            except PeerFault as fault:
                self._notice(f"our own update breaks the run's bounds ({fault}); this round goes on without it")
                exchange.offer(None)

    async def _follow(
        self, exchange: GradientExchange, transport: Transport, keeper: Keeper, catch_up: CatchUp
    ) -> NoReturn:
        """Everything that comes of the rounds."""
        while True:
            outcome = await exchange.outcomes.get()
            match outcome:
                case Committed():
                    keeper.tell(outcome, transport.traffic(), Spent(self._samples, self._epsilon))
                    self._stop_at_end(outcome.state.round)
                    self._round_began.set()
                case Adopted():
                    tell_outcome(self._sink, outcome, outcome.state.round)
                    keeper.tell_adopted(outcome, transport.traffic(), Spent(0, self._epsilon))
                    self._stop_at_end(outcome.state.round)
                    self._round_began.set()
                case Convicted():
                    tell_evidence(self._sink, outcome.evidence, keeper.keep_evidence)
                case Behind():
                    self._spawn(self._look(catch_up, outcome.peers))
                case Halt():
                    self._failure = ArithmeticMismatch(outcome.reason)
                    self._stopping.request(outcome.reason)
                case _:
                    tell_outcome(self._sink, outcome, exchange.machine.round)

    async def _look(self, catch_up: CatchUp, peers: tuple[PeerId, ...]) -> None:
        try:
            await catch_up.look(peers)
        except NetworkError as error:
            self._notice(f"others are ahead, or on another branch, and can't be followed yet: {error}")

    def _end(self, round_number: int) -> str:
        """Why the node leaves after this round; "" if it stays."""
        rounds = self._config.leave.rounds
        if self._target and round_number >= self._target:
            return f"the run is complete after {self._target} round{'s' if self._target > 1 else ''}"
        if rounds is not None and round_number - self._joined_at >= rounds:
            return f"{rounds} round{'s are' if rounds > 1 else ' is'} committed, as asked with --rounds"
        return ""

    def _stop_at_end(self, round_number: int) -> None:
        reason = self._end(round_number)
        if reason:
            self._stopping.request(reason)

    def _on_measured(self, manifest: RunManifest, measures: dict[str, float]) -> None:
        until = self._config.leave.until
        if until is not None and until.reached(measures.get(until.metric)):
            self._stopping.request(f"{until} is reached")
        if manifest.training.target_metric:
            from p2pnode.config import parse_goal

            goal = parse_goal(manifest.training.target_metric)
            if goal.reached(measures.get(goal.metric)):
                self._stopping.request(f"the run is complete: {goal} is reached")

    # leaving

    async def _leave(self, run: Run, exchange: GradientExchange, worker: Worker, reporter: Reporter) -> None:
        """Finish or give up the round in progress, say goodbye, show and save the result."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (LINGER_SECONDS if self._stopping.by_itself else FINISH_SECONDS)
        if exchange.running and self._failure is None:
            if self._stopping.by_itself:
                await linger(exchange, self._require(self._transport), deadline)
            else:
                number = exchange.machine.round
                while not exchange.machine.wants_update and exchange.machine.round == number:
                    if loop.time() > deadline or len(exchange.machine.state.roster.members) == 1:
                        break
                    await asyncio.sleep(0.05)
            await exchange.leave(0.2)
        state = exchange.machine.state if exchange.running else None
        # Told by a person to go, we have seconds; at the run's end, the last measures are what it was all for.
        await self._until(self._conclude(run, worker, reporter, state), None if self._stopping.by_itself else 4.0)
        delta = run.manifest.privacy.delta if self._epsilon is not None else None
        self._sink.emit(
            "stopped",
            reason=self._stopping.reason,
            round=state.round if state else None,
            state_digest=state.digest if state else None,
            epsilon=self._epsilon,
            delta=delta,
        )
        if self._failure is not None:
            raise self._failure

    async def _conclude(self, run: Run, worker: Worker, reporter: Reporter, state: GlobalState | None) -> None:
        await reporter.finish()
        if state is not None:
            await save(self._sink, run, worker, state, await reporter.measure(state), self._epsilon)

    # telling

    def _notice(self, text: str) -> None:
        self._sink.emit("notice", text=text)

    def _debug(self, text: str) -> None:
        if self._config.debug:
            self._notice(text)

    # small helpers

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._on_task_done)
        self._tasks.append(task)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if isinstance(error, P2PNodeError):
            self._failure = self._failure or error
        else:
            self._failure = self._failure or _Crash(error)
        self._stopping.request(str(self._failure))

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; _Stopped if we are told to stop first."""
        task = asyncio.ensure_future(work)
        waiter = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _Stopped
        finally:
            for future in (task, waiter):
                future.cancel()
                with contextlib.suppress(BaseException):
                    await future

    async def _until(self, work: Coroutine[Any, Any, None], seconds: float | None) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(work, seconds)

    @staticmethod
    def _require(value: T | None) -> T:
        if value is None:
            raise RuntimeError("used before it was made")
        return value


class _Crash(P2PNodeError):
    """A defect of ours."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__(f"p2pnode broke ({error!r}); --debug shows where")
        self.__cause__ = error
