"""One generator replica, simulated from event to event.

The rules are those of `compass.generate.scheduler` at a block size of one: continuous batching in
order of priority, a group's prompt computed once while a member lives, chunked prompts, the newest
preempted when the KV cache is full, seats that change hands after each turn. Between two events
(a completion ends or has had its turn, one is admitted, the cache is full) every step only adds a
token to each completion, so that the sum of their costs has a closed form and 64k tokens cost no
more to simulate than 64. Prompts are fed step by step.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence

from benches.cost_model import CostModel
from simulation.jobs import Job, LiveGroup, LiveJob, Replica, ReplicaRun

from compass.rl.placement.shares import deal_first


def run_replica(jobs: Iterable[Job], replica: Replica, cost: CostModel) -> ReplicaRun:
    """Write all `jobs`.

    Raises:
        ValueError: a job alone would not fit in the cache.
    """
    simulation = Simulation(replica, cost)
    simulation.add(*jobs)
    while simulation.has_work:
        simulation.advance()
    return simulation.run


def run_queue(
    shares: Sequence[Sequence[Job]], num_replicas: int, replica: Replica, cost: CostModel
) -> list[ReplicaRun]:
    """Write all shares: the first are dealt like cards, then each goes to the replica that first
    has fewer jobs than seats (`compass.rl.rollout.GrowingGroups.take`).

    Raises:
        ValueError: a job alone would not fit in the cache.
    """
    simulations = [Simulation(replica, cost) for _ in range(num_replicas)]
    dealt, num_dealt = deal_first(
        [len(share) for share in shares], num_seats=replica.max_num_seqs, world_size=num_replicas
    )
    for simulation, places in zip(simulations, dealt, strict=True):
        simulation.add(*(job for place in places for job in shares[place]))
    queue = deque(shares[num_dealt:])
    # Whoever is behind in time acts next, so that shares are taken in the order of time.
    behind = [(0.0, r) for r in range(num_replicas)]
    while behind:
        _, r = heapq.heappop(behind)
        simulation = simulations[r]
        while queue and simulation.num_jobs < replica.max_num_seqs:
            simulation.add(*queue.popleft())
        if simulation.has_work:
            simulation.advance()
            heapq.heappush(behind, (simulation.seconds, r))
    return [simulation.run for simulation in simulations]


class Simulation:
    """One replica at one moment."""

    def __init__(self, replica: Replica, cost: CostModel) -> None:
        self.replica = replica
        self.cost = cost
        self.run = ReplicaRun()
        self.waiting: list[LiveJob] = []
        """A heap."""
        self.paused: list[LiveJob] = []
        """Those of `waiting` that kept their cache."""
        self.groups: dict[int, LiveGroup] = {}
        self.seats: list[tuple[int, LiveJob]] = []
        """(seat, job), oldest first; those who left stay until they are on top."""
        self.num_seated = 0
        """Admissions so far."""
        self.filling: list[LiveJob] = []
        """Those that are being fed before they decode, oldest first."""
        self.finishes: list[tuple[int, int, LiveJob]] = []
        """Heap of (clock of the last token, index, job) of decoders; stale ones stay until on
        top."""
        self.turn_ends: list[tuple[int, int, LiveJob]] = []
        """Heap of (clock, seat, job), as above."""
        self.num_decoding = 0
        self.sum_lengths = 0
        """Prompt and written tokens over decoders: the context of the next step."""
        self.num_running = 0
        self.num_followers = 0
        self.kv_used = 0
        self.clock = 0
        """Steps so far."""
        self.seconds = 0.0

    def add(self, *jobs: Job) -> None:
        """Queue jobs that have come now. Raises ValueError when one alone would not fit."""
        for job in jobs:
            # The last token is written but never fed.
            if job.num_prompt_tokens + job.num_tokens - 1 > self.replica.kv_tokens:
                raise ValueError(
                    f"{job} does not fit in a cache of {self.replica.kv_tokens} tokens"
                )
            heapq.heappush(self.waiting, LiveJob(len(self.run.jobs), job))
            self.groups.setdefault(job.group, LiveGroup())
            self.run.jobs.append(job)
            self.run.starts.append(-1.0)
            self.run.ends.append(0.0)

    def advance(self) -> None:
        """To the next event, or by a step."""
        if not self.skip_quiet_steps():
            self.step()

    @property
    def has_work(self) -> bool:
        """Whether a job has not ended."""
        return self.num_jobs > 0

    @property
    def num_jobs(self) -> int:
        """Jobs that have not ended."""
        return self.num_running + self.num_followers + len(self.waiting)

    @property
    def _kv_free(self) -> int:
        return self.replica.kv_tokens - self.kv_used

    # Quiet steps.

    def skip_quiet_steps(self) -> bool:
        """Advance to the next event if nothing but decoding happens until then."""
        if self.filling or not self.num_decoding or self._kv_free < self.num_decoding:
            return False
        count = self._kv_free // self.num_decoding
        if self._has_seat():
            if self._next_guest(self._kv_free - self.num_decoding) is not None:
                return False
        elif self.waiting and self.turn_ends:
            if (num_steps := self._next_turn_end() - self.clock) == 0:
                return False
            count = min(count, num_steps)
        while not self._is_decoding(self.finishes[0][2], self.finishes[0][0]):
            heapq.heappop(self.finishes)
        self._advance(min(count, self.finishes[0][0] - self.clock), num_sampled=0, num_fed=0)
        self._finish_decoders()
        return True

    def _advance(self, count: int, num_sampled: int, num_fed: int) -> None:
        """`count` steps of the present decoders; in the first, `num_fed` tokens are fed besides and
        `num_sampled` other jobs get their token."""
        n = self.num_decoding
        context = count * self.sum_lengths + n * count * (count - 1) // 2
        self.seconds += (
            (count - 1) * self.cost.fixed_seconds(n)
            + self.cost.fixed_seconds(n + num_sampled)
            + self.cost.per_context_token_seconds * context
            + self.cost.per_prompt_token_seconds * num_fed
        )
        self.clock += count
        self.sum_lengths += n * count
        self.kv_used += n * count
        self.run.num_steps += count
        self.run.num_written += n * count + num_sampled
        self.run.num_prompt_tokens_fed += num_fed
        self.run.max_kv_tokens = max(self.run.max_kv_tokens, self.kv_used)
        assert self.kv_used <= self.replica.kv_tokens

    def _finish_decoders(self) -> None:
        while self.finishes and self.finishes[0][0] <= self.clock:
            finish_clock, _, live = heapq.heappop(self.finishes)
            if self._is_decoding(live, finish_clock):
                self._finish(live)
        self._note_occupancy()

    def _next_turn_end(self) -> int:
        """Clock of the next end of a turn, now included; the next finish if there is none."""
        while self.turn_ends:
            clock, seat, live = self.turn_ends[0]
            if clock >= self.clock and live.seat == seat:
                return clock
            heapq.heappop(self.turn_ends)
            if live.seat == seat:
                self._note_turn_end(live, now=True)
        return self.finishes[0][0] if self.finishes else self.clock + 1

    # One step with something to fill, to admit or to change.

    def step(self) -> None:
        """One step as the scheduler would take it."""
        self._change_seats()
        self._preempt()
        surplus = self.replica.max_tokens_per_step - self.num_running
        num_fed = 0
        for live in self.filling:
            chunk = min(live.need, 1 + surplus)
            surplus -= chunk - 1
            live.need -= chunk
            num_fed += chunk
        num_fed += self._admit(surplus)
        ready = [live for live in self.filling if not live.need]
        self.filling = [live for live in self.filling if live.need]
        for live in list(ready):
            ready += self._fork_followers(live)
        self._advance(1, num_sampled=len(ready), num_fed=num_fed)
        self._finish_decoders()
        for live in ready:
            live.written += 1
            self.groups[live.job.group].num_prompt_known += 1
            self._join_decoders(live, has_written=True)
            if live.finish_clock == self.clock:
                self._finish(live)
        self._note_occupancy()

    def _change_seats(self) -> None:
        if self._has_seat() or not self.waiting:
            return
        over = []
        while self.turn_ends and self.turn_ends[0][0] <= self.clock:
            _, seat, live = heapq.heappop(self.turn_ends)
            if live.seat != seat:
                continue
            if self._ended_turn(live):
                over.append(live)
            self._note_turn_end(live, now=False)
        guests = []
        free = self._kv_free - self.replica.kv_tokens // 2
        for live in sorted(over, key=lambda live: live.seat):
            if not self.waiting:
                break
            turns = self._num_written(live) // live.turn_tokens
            guest = self.waiting[0]
            free -= self._num_missing(guest)
            if free < 0 or guest.turns >= turns:
                break
            guests.append(heapq.heappop(self.waiting))
            self._leave_decoders(live)
            live.seat = 0
            live.turns = turns
            self.num_running -= 1
            self.run.num_pauses += 1
            self.paused.append(live)
            live.is_paused = True
            heapq.heappush(self.waiting, live)
        for guest in guests:
            heapq.heappush(self.waiting, guest)

    def _preempt(self) -> None:
        """Until each decoder has room for a token."""
        while self.num_decoding > self._kv_free:
            if self.paused:
                self._preempt_paused()
                continue
            seat, victim = self.seats.pop()
            if victim.seat != seat:
                continue
            assert self.num_running > 1, "one job alone fits"
            if victim.joined_clock >= 0:
                self._leave_decoders(victim)
                self._drop_prompt(victim)
            else:
                self.filling.remove(victim)
                group = self.groups[victim.job.group]
                group.leader = None if group.leader is victim else group.leader
                self.kv_used -= 1  # being filled, it had a place for its last token too
            self._release(victim)
            self.num_running -= 1
            victim.seat = 0
            victim.turns = victim.written // victim.turn_tokens
            self.run.num_preemptions += 1
            heapq.heappush(self.waiting, victim)

    def _preempt_paused(self) -> None:
        victim = max(self.paused)
        self.paused.remove(victim)
        victim.is_paused = False
        self._drop_prompt(victim)
        self._release(victim)
        self.run.num_preemptions += 1

    # Admission.

    def _has_seat(self) -> bool:
        seats = self.replica.max_num_seqs
        return bool(self.waiting) and self.num_running + self.num_followers < seats

    def _num_missing(self, live: LiveJob) -> int:
        """Tokens of cache that admission takes."""
        if live.is_paused:
            return 1
        if self.groups[live.job.group].num_prompt_known:
            return live.written + 1  # the last prompt token is computed again, for its logits
        return live.written + live.job.num_prompt_tokens

    def _next_guest(self, free: int) -> LiveJob | None:
        """Who is admitted next, if anybody: the first that waits, or where it finds no cache the
        first that kept its own. One token is kept back for each running job."""
        head = self.waiting[0]
        if not head.written and self.groups[head.job.group].leader is not None:
            return head  # as a follower, which takes nothing yet
        if self._num_missing(head) + self.num_running <= free:
            return head
        if self.paused and 1 + self.num_running <= free:
            return min(self.paused)
        return None

    def _admit(self, budget: int) -> int:
        """Returns the tokens fed to those admitted."""
        num_fed = 0
        while budget > 0 and self._has_seat():
            guest = self._next_guest(self._kv_free - self.num_decoding)
            if guest is None:
                if self.num_running or not self.paused:
                    break
                self._preempt_paused()
                continue
            self._leave_waiting(guest)
            group = self.groups[guest.job.group]
            if guest.is_paused:
                self.paused.remove(guest)
                guest.is_paused = False
                self._seat(guest)
                self._join_decoders(guest, has_written=False)
                budget -= 1
            elif not guest.written and group.leader is not None:
                group.followers.append(guest)
                self.num_followers += 1
            else:
                chunk = self._begin(guest, budget)
                num_fed += chunk
                budget -= chunk
        return num_fed

    def _begin(self, live: LiveJob, budget: int) -> int:
        group = self.groups[live.job.group]
        if not live.written:
            group.leader = live
        need = self._num_missing(live)
        chunk = min(need, budget)
        live.need = need - chunk
        self._seat(live)
        self._hold(live)
        self.filling.append(live)
        return chunk

    def _fork_followers(self, leader: LiveJob) -> list[LiveJob]:
        group = self.groups[leader.job.group]
        if group.leader is not leader:
            return []
        group.leader = None
        forked = []
        for follower in group.followers:
            self.num_followers -= 1
            if self._kv_free - self.num_decoding > self.num_running:
                self._seat(follower)
                self._hold(follower)
                forked.append(follower)
            else:
                heapq.heappush(self.waiting, follower)
        group.followers.clear()
        return forked

    # Bookkeeping of one job.

    def _leave_waiting(self, live: LiveJob) -> None:
        if live is self.waiting[0]:
            heapq.heappop(self.waiting)
        else:
            self.waiting.remove(live)
            heapq.heapify(self.waiting)

    def _seat(self, live: LiveJob) -> None:
        self.num_seated += 1
        self.num_running += 1
        live.seat = self.num_seated
        self.seats.append((live.seat, live))
        if self.run.starts[live.index] < 0:
            self.run.starts[live.index] = self.seconds

    def _hold(self, live: LiveJob) -> None:
        """Take the cache of its tokens; a group's prompt counts once."""
        group = self.groups[live.job.group]
        self.kv_used += live.written + (0 if group.num_alive else live.job.num_prompt_tokens)
        group.num_alive += 1

    def _release(self, live: LiveJob) -> None:
        """Give back the cache of all its tokens but the last, which was never fed."""
        group = self.groups[live.job.group]
        group.num_alive -= 1
        self.kv_used -= live.written - 1
        self.kv_used -= 0 if group.num_alive else live.job.num_prompt_tokens

    def _drop_prompt(self, live: LiveJob) -> None:
        self.groups[live.job.group].num_prompt_known -= 1

    def _num_written(self, live: LiveJob) -> int:
        return live.written + self.clock - live.joined_clock

    def _join_decoders(self, live: LiveJob, *, has_written: bool) -> None:
        """`has_written`: the step that has just run gave it a token."""
        live.joined_clock = self.clock
        live.finish_clock = self.clock + live.job.num_tokens - live.written
        self.num_decoding += 1
        self.sum_lengths += live.job.num_prompt_tokens + live.written
        if live.finish_clock > self.clock:
            heapq.heappush(self.finishes, (live.finish_clock, live.index, live))
            if live.turn_tokens < live.job.num_tokens:
                self._note_turn_end(live, now=has_written)

    def _ended_turn(self, live: LiveJob) -> bool:
        """Whether the last step was the last of a turn."""
        return self._num_written(live) % live.turn_tokens == 0

    def _note_turn_end(self, live: LiveJob, *, now: bool) -> None:
        """The next one, `now` included or not."""
        rest = -self._num_written(live) % live.turn_tokens
        clock = self.clock + (rest if now else rest or live.turn_tokens)
        heapq.heappush(self.turn_ends, (clock, live.seat, live))

    def _leave_decoders(self, live: LiveJob) -> None:
        live.written = self._num_written(live)
        live.joined_clock = -1
        self.num_decoding -= 1
        self.sum_lengths -= live.job.num_prompt_tokens + live.written

    def _finish(self, live: LiveJob) -> None:
        self._leave_decoders(live)
        assert live.written == live.job.num_tokens
        self.run.ends[live.index] = self.seconds
        self._drop_prompt(live)
        self._release(live)
        self.num_running -= 1
        live.seat = 0

    @staticmethod
    def _is_decoding(live: LiveJob, finish_clock: int) -> bool:
        """False for what pauses and preemptions left behind in a heap."""
        return live.joined_clock >= 0 and live.finish_clock == finish_clock

    def _note_occupancy(self) -> None:
        occupancy = self.run.occupancy
        if not occupancy or occupancy[-1][1] != self.num_running:
            occupancy.append((self.seconds, self.num_running))
