"""One node: the real delivery machine, and around it what our sink and aiokafka do."""

from collections import defaultdict, deque
from collections.abc import Iterable
from functools import partial
from itertools import count
from math import inf

from agent.core.batch import Batch
from agent.core.breaker import Breaker, Jitter
from agent.core.congestion import Window
from agent.core.delivery import Action, Close, Connect, Delivery, Phase, Refuse, Send
from tests.fleet.world import (
    APPEND,
    CONNECT,
    GRAIN_S,
    IN_FLIGHT,
    PARTITIONS,
    REQUEST,
    REQUEST_TIMEOUT_S,
    RTT_S,
    THROTTLE_S,
    Answered,
    Lost,
    Style,
    World,
)


class Client:
    """One producer's life after another, as aiokafka lives it."""

    def __init__(self, world: World, node: "Node", style: Style) -> None:
        self._world = world
        self._node = node
        self._style = style
        self.backoff_s = 0.0
        self._life = 0
        self._forget()

    def _forget(self) -> None:
        self._life += 1
        self._connected: set[int] = set()
        self._asked: dict[int, tuple[int, Lost]] = {}  # waits for an answer: where, and if not
        self._turn = count()
        self._leaders = self._world.leaders
        self._pending: defaultdict[int, deque[Batch]] = defaultdict(deque)
        self._busy: set[int] = set()  # brokers with a produce request under way
        self._muted: set[int] = set()  # partitions of it
        self._updating = False
        self._waiting: list[tuple[int, dict[int, Batch], tuple[int, ...]]] = []  # for metadata

    # ---- what the outlet asks of it

    def start(self) -> None:
        self.backoff_s = self._style.flat_s or self._world.random.uniform(0.5, 1.0)
        for broker in self._world.shuffled():
            if self._ask(broker, "metadata", REQUEST, self._bootstrapped, self._failed):
                return
        self._failed()

    def send(self, batch: Batch) -> None:
        self._pending[batch.partition].append(batch)
        self._pump()

    def close(self) -> None:
        self._forget()

    # ---- a start

    def _bootstrapped(self, _: bool) -> None:
        self._connected.clear()  # the connection to a configured address is not kept
        self._step(["init", "metadata", "describe"])

    def _step(self, steps: list[str]) -> None:
        if not steps:
            self._leaders = self._world.leaders
            self._age()
            self._node.connected()
            return
        broker, rest = self._world.random.choice(self._world.shuffled()), steps[1:]
        if not self._ask(broker, steps[0], REQUEST, lambda _: self._step(rest), self._failed):
            self._failed()

    def _failed(self) -> None:
        self._forget()
        self._world.after(RTT_S, self._node.connect_failed)

    # ---- produce

    def _pump(self) -> None:
        """Drain a batch of each partition whose leader is not busy: a request a leader."""
        if len(self._busy) == len(self._world.brokers):
            return
        requests: dict[int, dict[int, Batch]] = {}
        for partition, queue in self._pending.items():
            if not queue or partition in self._muted:
                continue
            leader = self._leaders[partition]
            if leader not in self._busy:
                requests.setdefault(leader, {})[partition] = queue.popleft()
        for broker, batches in requests.items():
            self._busy.add(broker)
            self._muted.update(batches)
            # a request's handler takes the backoff over when it is made
            lost = partial(self._lost, broker, batches, tuple(batches), self.backoff_s)
            answered = partial(self._answered, broker, batches, self.backoff_s)
            units = REQUEST + APPEND * len(batches)
            if not self._ask(broker, "produce", units, answered, lost):
                lost()

    def _answered(
        self, broker: int, batches: dict[int, Batch], backoff_s: float, throttled: bool
    ) -> None:
        life, moved, leaders = self._life, {}, self._world.leaders
        for partition, batch in batches.items():
            if leaders[partition] != broker:
                moved[partition] = batch
                continue
            self._node.acked(batch, throttled=throttled)
            if life != self._life:
                return
        if moved:
            self._lost(broker, moved, tuple(batches), backoff_s)
        else:
            self._free(broker, tuple(batches))

    def _lost(
        self, broker: int, batches: dict[int, Batch], muted: tuple[int, ...], backoff_s: float
    ) -> None:
        self._refresh()
        self._world.after(backoff_s, self._again, self._life, broker, batches, muted)

    def _again(
        self, life: int, broker: int, batches: dict[int, Batch], muted: tuple[int, ...]
    ) -> None:
        if life != self._life:
            return
        if self._updating:
            self._waiting.append((broker, batches, muted))
            return
        for partition, batch in batches.items():
            self._pending[partition].appendleft(batch)
        self._free(broker, muted)

    def _free(self, broker: int, muted: Iterable[int]) -> None:
        self._busy.discard(broker)
        self._muted.difference_update(muted)
        self._pump()

    # ---- metadata

    def _age(self) -> None:
        spread = self._style.metadata_spread
        age_s = 300.0 * self._world.random.uniform(1 - spread, 1 + spread)
        self._world.after(age_s, self._aged, self._life)

    def _aged(self, life: int) -> None:
        if life == self._life:
            self._refresh()
            self._age()

    def _refresh(self) -> None:
        if not self._updating:
            self._updating = True
            self._update_from(self._world.shuffled())

    def _update_from(self, brokers: list[int]) -> None:
        while brokers:
            broker = brokers.pop()
            lost = partial(self._update_from, brokers)
            if self._ask(broker, "metadata", REQUEST, self._updated, lost):
                return
        self._go_on()

    def _updated(self, _: bool) -> None:
        self._leaders = self._world.leaders
        self._go_on()

    def _go_on(self) -> None:
        self._updating = False
        waiting, self._waiting = self._waiting, []
        for again in waiting:
            self._again(self._life, *again)
        self._pump()

    # ---- connections

    def _ask(self, at: int, kind: str, units: int, answered: Answered, lost: Lost) -> bool:
        """Connect if need be and send a request. Return False if the connection is refused."""
        world, broker = self._world, self._world.brokers[at]
        if at not in self._connected:
            world.count("connections")
            if not broker.up:
                world.count("refused")
                return False
            self._connected.add(at)
            units += CONNECT
        if kind in world.counts:
            world.count(kind)
        throttled = broker.backlog_s > THROTTLE_S
        wait_s, turn = broker.take(units), next(self._turn)
        self._asked[turn] = at, lost
        if wait_s > REQUEST_TIMEOUT_S:
            world.after(REQUEST_TIMEOUT_S, self._timed_out, self._life, turn)
        else:
            world.after(wait_s, self._arrived, self._life, turn, answered, throttled)
        return True

    def _arrived(self, life: int, turn: int, answered: Answered, throttled: bool) -> None:
        if life == self._life and self._asked.pop(turn, None) is not None:
            answered(throttled)

    def _timed_out(self, life: int, turn: int) -> None:
        if life == self._life and turn in self._asked:
            self._world.count("refused")
            self.broken(self._asked[turn][0])

    def broken(self, broker: int) -> None:
        """Lose the connection to ``broker`` and what was asked over it."""
        if broker not in self._connected:
            return
        self._connected.discard(broker)
        lost = [turn for turn, (at, _) in self._asked.items() if at == broker]
        losses = [self._asked.pop(turn)[1] for turn in lost]
        life = self._life
        for lose in losses:
            if life == self._life:
                lose()
        if life == self._life and self._node.live:
            self._refresh()


class Node:
    """One machine with its client, its load and its spool: ``agent.sink`` and ``agent.spooler``."""

    def __init__(self, world: World, style: Style) -> None:
        jitter: Jitter = world.random.random if style.flat_s is None else lambda: 1.0
        self._world = world
        self._style = style
        self.client = Client(world, self, style)
        self.delivery = Delivery(
            style.retry,
            Breaker(style.breaker, world.monotonic, jitter),
            split=_never,
            repartition=lambda batches, _: batches,
            retire_s=REQUEST_TIMEOUT_S,
            bytes_per_s_max=None,
            start_s=world.plan.start_jitter_s * (jitter() if style.flat_s is None else 0.0),
            absent_s=30.0,
            clock=world.monotonic,
            jitter=jitter,
        )
        if style.flat_s is not None:
            self.delivery._window = _Boundless()
        self.live = False
        self.spooled = 0
        self._out = 0
        self._timer_s = inf
        self._arm()
        world.after(world.random.expovariate(world.plan.batches_per_s), self._seal)

    # ---- load

    def _seal(self) -> None:
        world = self._world
        world.outstanding += 1
        world.after(world.random.expovariate(world.plan.batches_per_s), self._seal)
        if self.spooled or self.delivery.outage is not None:
            self.spooled += 1
            self._replay()
        else:
            self._carry_out(self.delivery.admit(self._batch()))

    def _replay(self) -> None:
        while self.spooled and self.delivery.queued < IN_FLIGHT and self.delivery.outage is None:
            self.spooled -= 1
            self._carry_out(self.delivery.admit(self._batch()))

    def _batch(self) -> Batch:
        return Batch(
            partition=self._world.random.randrange(PARTITIONS), count=100, payload=b"", codec=0,
            first_ms=0, max_ms=0, raw_bytes=0, opened_at_s=0.0, chunks=[],
        )  # fmt: skip

    # ---- what the client reports

    def connected(self) -> None:
        self.live = True
        self._carry_out(self.delivery.connected(PARTITIONS))
        self._replay()

    def connect_failed(self) -> None:
        self._carry_out(self.delivery.connect_failed("unreachable"))

    def acked(self, batch: Batch, *, throttled: bool) -> None:
        self._world.outstanding -= 1
        self._out -= 1
        self._carry_out(self.delivery.acked(batch, throttled=throttled))
        self._replay()

    def _closed(self) -> None:
        self._carry_out(self.delivery.closed())

    # ---- as the outlet carries out, and waits

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(batch):
                    self._out += 1
                    self.client.send(batch)
                case Connect():
                    self.client.start()
                case Close():
                    self.live, self._out = False, 0
                    self.client.close()
                    self._world.after(RTT_S, self._closed)
                case Refuse():
                    raise AssertionError("nothing is refused here")
        if self._style.flat_s is None and self._out:
            self.client.backoff_s = self.delivery.client_backoff_s()
        self._arm()

    def _arm(self) -> None:
        live = self.delivery.phase is Phase.LIVE
        if live and self._timer_s <= self._world.now + self.delivery.breaker.patience_s:
            return  # silence that was broken only moves the date on
        due_s = self.delivery.due_s
        if due_s is not None and due_s < self._timer_s:
            self._timer_s = max(due_s, self._world.now + GRAIN_S)
            self._world.at(self._timer_s, self._due, self._timer_s)

    def _due(self, when_s: float) -> None:
        if when_s != self._timer_s:
            return  # an earlier one was set since
        self._timer_s = inf
        due_s = self.delivery.due_s
        if due_s is None or due_s <= self._world.now + GRAIN_S:
            self._carry_out(self.delivery.tick())
        else:
            self._arm()  # something was answered since


class _Boundless(Window):
    def acked(self, sent_at: float, now: float, *, out: int, throttled: bool) -> None:
        pass

    def room(self, out: int) -> bool:
        return True


def _never(batch: Batch) -> tuple[Batch, Batch]:
    raise AssertionError("nothing is refused here")
