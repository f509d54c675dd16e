# SPDX-License-Identifier: Apache-2.0
"""The search in Python: oracle of the C++ core, and what runs where that is missing.

Depth first. A node picks a variable (those with a given order first, then the smallest quotient of
domain size and failures seen below it), takes one end of its domain or one half, and propagates.
"""

from __future__ import annotations

import time

from constrint import _flat as F
from constrint._propagate import IDEMPOTENT, PROPAGATORS, events_of
from constrint._relax import refuted
from constrint._store import BOUNDS, FAIL, FailError, Store

# What `run` returns. PAUSED: the nodes are spent; LATE: the time is, maybe in the middle of a node.
DONE, SOLUTION, PAUSED, LATE = 0, 1, 2, 4
# Domains of up to this many values are tried value by value, larger ones are halved.
VALUES = 8
# Failures before the first restart; each later one waits for a fifth more.
FIRST_PATIENCE = 100
_SIZE_CAP = 1 << 40
# One node may take so many propagations, and so many for each propagator, before the rules that run
# next are looked at together and the search branches.
SLOW, SLOW_EACH, WINDOW = 200, 3, 64
_PROPAGATIONS_PER_LOOK = 64

_PROPAGATE, _BRANCH, _BACKTRACK, _END = range(4)
Frame = tuple[int, int, int, int, int, bool]


class Twin:
    """One search over a `Flat`.

    Args:
        keep: 0 to stop at every solution, or k to keep the k solutions with the least objective.
        counting: only count solutions.
        restarts: begin again at the root after some failures, more each time; what failed decides
            about the next order of variables. For searches that end at their first solution.
    """

    def __init__(self, flat: F.Flat, keep: int = 0, counting: bool = False, restarts: bool = False):
        self.flat, self.keep, self.counting = flat, keep, counting
        self.store = Store(flat)
        self.frames: list[Frame] = []
        self.best: list[tuple[int, list[int]]] = []
        self.nodes = self.propagations = self.failures = self.solutions = 0
        self.patience = FIRST_PATIENCE
        self.restart_at = FIRST_PATIENCE if restarts else -1
        self.restarts = self.dice = 0
        self.weight = [1] * flat.n_user
        for p, (_, r, _, xs, _) in enumerate(flat.props):
            events = events_of(flat.props[p])
            for x in dict.fromkeys(xs):
                self.store.watchers[x].append((p, events))
            if r >= 0:
                self.store.watchers[r].append((p, BOUNDS))
            for x in flat.scopes[p]:
                self.weight[x] += 1
        # Propagations of this node; those seen late; whether it was left before they came to rest.
        self.steps, self.open = 0, False
        self.late: list[int] = []
        self.slow = SLOW + SLOW_EACH * len(flat.props)
        self.window = WINDOW + len(flat.props)
        self._wake_all()
        self._phase = _END if flat.fault else _PROPAGATE

    def run(self, nodes: int, seconds: float) -> int:
        """Search on until a solution, the end, or until this many nodes or seconds are spent."""
        last_node, deadline = self.nodes + nodes, time.monotonic() + seconds
        while True:
            if self._phase == _PROPAGATE:
                done = self._propagate(deadline)
                if done is None:
                    return LATE
                self._phase = _BRANCH if done else _BACKTRACK
            elif self._phase == _BRANCH:
                var, direction = self._choose()
                if var < 0 and self.open:
                    self.open, self._phase = False, _PROPAGATE
                    self._wake_all()
                elif var < 0:
                    self._phase = _BACKTRACK
                    if self._take_solution():
                        return SOLUTION
                elif self.nodes >= last_node:
                    return PAUSED
                else:
                    self._descend(var, direction)
            elif self._phase == _BACKTRACK:
                if self.nodes >= last_node and self.frames:
                    return PAUSED
                if not self._backtrack():
                    self._phase = _END
            else:
                return DONE

    def solution(self) -> list[int]:
        """Return the values of the model's variables, all of which are fixed now."""
        return self.store.lo[: self.flat.n_user]

    def bound(self) -> int:
        """Return a value that no solution yet to be found can be below (of the objective)."""
        here = self.store.lo[self.flat.objective]
        return min([here, *(frame[4] for frame in self.frames)])

    def _wake_all(self) -> None:
        """Let every propagator run, which counts as a new node."""
        store = self.store
        for p in range(len(self.flat.props)):
            if not store.queued[p]:
                store.queued[p] = 1
                store.queue.append(p)

    def _creeping(self, p: int) -> bool:
        """Note that p runs late; True: leave the node as it is. Raise if the rules clash."""
        if self.steps <= self.slow + self.window:
            if p not in self.late:
                self.late.append(p)
            return False
        if refuted(self.store, [self.flat.props[q] for q in self.late]):
            raise FAIL
        lo, hi = self.store.lo, self.store.hi
        self.steps, self.late = 0, []
        return any(lo[x] != hi[x] for x in range(self.flat.n_user))

    def _propagate(self, deadline: float) -> bool | None:
        """Run the queue empty; False: a failure, None: out of time."""
        store, props = self.store, self.flat.props
        queue, queued = store.queue, store.queued
        p = 0
        try:
            while queue:
                self.propagations += 1
                self.steps += 1
                p = queue.popleft()
                if self.steps > self.slow and self._creeping(p):
                    queued[p] = 0
                    store.clear_queue()
                    self.open = True
                    return True
                op, r, want, xs, consts = props[p]
                if op in IDEMPOTENT:
                    PROPAGATORS[op](store, r, want, xs, consts)
                    queued[p] = 0
                else:
                    queued[p] = 0
                    PROPAGATORS[op](store, r, want, xs, consts)
                if self.propagations % _PROPAGATIONS_PER_LOOK == 0 and time.monotonic() > deadline:
                    return None
        except FailError:
            queued[p] = 0
            store.clear_queue()
            self.failures += 1
            for x in self.flat.scopes[p]:
                self.weight[x] += 1
            return False
        return True

    def _choose(self) -> tuple[int, int]:
        """Return the variable to branch on and its direction, or (-1, 1) when all are fixed."""
        lo, hi = self.store.lo, self.store.hi
        for x, direction in self.flat.order:
            if lo[x] != hi[x]:
                return x, direction
        best, best_size, best_weight = -1, 0, 1
        for x in range(self.flat.n_user):
            if lo[x] != hi[x]:
                size, weight = min(self.store.size(x), _SIZE_CAP), self.weight[x]
                if best < 0 or size * best_weight < best_size * weight:
                    best, best_size, best_weight = x, size, weight
        if best < 0:
            return -1, 1
        direction = self.flat.directions[best]
        return best, -direction if self.restarts % 2 == 1 and self._coin() else direction

    def _coin(self) -> bool:
        """A fair coin, the same on every run."""
        self.dice = (self.dice * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.dice >= 2**63

    def _descend(self, x: int, direction: int) -> None:
        store = self.store
        lo, hi = store.lo[x], store.hi[x]
        size = store.size(x)
        at = lo + (hi - lo) // 2
        if size <= VALUES:
            at = lo if direction > 0 else hi - 1
        objective = self.flat.objective
        bound = store.lo[objective] if objective >= 0 else 0
        self.frames.append((len(store.trail), x, direction, at, bound, self.open))
        store.now += 1
        self._branch(x, direction, at)

    def _branch(self, x: int, direction: int, at: int) -> None:
        """Take the part of x up to ``at`` (direction 1) or above it (-1)."""
        self.nodes += 1
        self._phase = _PROPAGATE
        self.steps, self.late = 0, []
        if self.open:
            self._wake_all()
        self.open = False
        try:
            if direction > 0:
                self.store.set_hi(x, at)
            else:
                self.store.set_lo(x, at + 1)
            if self.keep and len(self.best) >= self.keep:
                self.store.set_hi(self.flat.objective, self.best[-1][0] - 1)
        except FailError:
            self.store.clear_queue()
            self._phase = _BACKTRACK

    def _backtrack(self) -> bool:
        if not self.frames:
            return False
        if self.failures >= self.restart_at >= 0:
            self.patience += self.patience // 5
            self.restart_at = self.failures + self.patience
            self.restarts += 1
            self.store.undo(self.frames[0][0])
            self.open = self.frames[0][5]
            self.frames.clear()
            self._phase = _BRANCH
            return True
        length, x, direction, at, _, self.open = self.frames.pop()
        self.store.undo(length)
        self._branch(x, -direction, at)
        return True

    def _take_solution(self) -> bool:
        """Note the solution; True: stop here."""
        self.solutions += 1
        if self.counting:
            return False
        if not self.keep:
            return True
        value = self.store.lo[self.flat.objective]
        k = len(self.best)
        while k and self.best[k - 1][0] > value:
            k -= 1
        self.best.insert(k, (value, self.solution()))
        del self.best[self.keep :]
        return False
