"""Events → Prometheus metrics. Needs the extra `metrics`; cli/metrics.py serves what is counted here.

The thing to understand first: a label's value costs memory for ever, here and in Prometheus, so no label names a peer,
and where a client has a say in a rule's name (an agent names the address that was asked for), only the first `NAMES`
are kept apart; the rest are `other`.
"""

from __future__ import annotations

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from vsockfwd.errors import printable
from vsockfwd.events import Closed, Denied, Dropped, Event, Opened, Problem, RuleChanged, SessionDown, SessionUp

NAMES = 200
"""Values that a label may have, but for `OTHER`."""

OTHER = "other"

SECONDS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
"""Upper bounds of the durations of connections that are counted apart."""


class _Names:
    """The values of one label: so many, then `other`."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= NAMES:
                return OTHER
            self._known.add(name)
        return printable(name)


class MetricsReporter:
    """Counts events into a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._rules, self._targets, self._reasons = _Names(), _Names(), _Names()
        self._open_now: Tally[tuple[str, str]] = Tally()
        """Connections whose beginning was told, by rule and peer."""
        ProcessCollector(registry=registry)
        self.opened = Counter(
            "vsockfwd_connections_opened", "Connections that were taken", ["rule"], registry=registry
        )  # fmt: skip
        self.closed = Counter(
            "vsockfwd_connections_closed", "Connections that are over", ["rule", "outcome"], registry=registry
        )
        self.open = Gauge("vsockfwd_connections_open", "Connections that are served now", ["rule"], registry=registry)
        self.bytes = Counter(
            "vsockfwd_bytes", "Bytes of connections that are over", ["rule", "direction"], registry=registry
        )
        self.seconds = Histogram(
            "vsockfwd_connection_seconds", "How long connections lasted", ["rule"], buckets=SECONDS, registry=registry
        )
        self.denied = Counter("vsockfwd_denied", "Peers that were turned away", registry=registry)
        self.forged = Counter("vsockfwd_keys_refused", "Keys that were shown and are none of ours", registry=registry)
        self.dropped = Counter(
            "vsockfwd_datagrams_dropped", "Datagrams that were not delivered", ["rule", "reason"], registry=registry
        )
        self.rule = Gauge("vsockfwd_rule_up", "1 while the rule is up", ["rule"], registry=registry)
        self.session = Gauge("vsockfwd_session_up", "1 while logged in to the agent", ["target"], registry=registry)
        self.losses = Counter("vsockfwd_sessions_lost", "Sessions that ended", ["target"], registry=registry)
        self.problems = Counter("vsockfwd_problems", "Failures that ended nothing else", registry=registry)

    def __call__(self, event: Event) -> None:
        match event:
            case Opened(rule=rule, peer=peer):
                self._open(self._rules(rule), peer)
            case Closed(rule=rule):
                self._close(self._rules(rule), event)
            case Denied(forged=forged):
                self.denied.inc()
                self.forged.inc(forged)
            case Dropped(rule=rule, reason=reason, count=count):
                self.dropped.labels(self._rules(rule), self._reasons(reason)).inc(count)
            case SessionUp(target=target):
                self.session.labels(self._targets(target)).set(1)
            case SessionDown(target=target):
                self.session.labels(self._targets(target)).set(0)
                self.losses.labels(self._targets(target)).inc()
            case RuleChanged(rule=rule, state=state):
                self.rule.labels(self._rules(rule)).set(state == "up")
            case Problem():
                self.problems.inc()

    def _open(self, rule: str, peer: str) -> None:
        self._open_now[rule, peer] += 1
        self.opened.labels(rule).inc()
        self.open.labels(rule).inc()

    def _close(self, rule: str, event: Closed) -> None:
        if self._open_now[rule, event.peer]:
            self._open_now[rule, event.peer] -= 1
            self.open.labels(rule).dec()
        else:
            # Its beginning was not told: what failed to connect at once, and an agent's streams, are told at the end.
            self.opened.labels(rule).inc()
        if not self._open_now[rule, event.peer]:
            del self._open_now[rule, event.peer]
        outcome = event.outcome
        self.closed.labels(rule, str(outcome.ending)).inc()
        self.bytes.labels(rule, "sent").inc(outcome.sent)
        self.bytes.labels(rule, "received").inc(outcome.received)
        self.seconds.labels(rule).observe(outcome.seconds)

    def close(self) -> None:
        """Nothing is held back."""
