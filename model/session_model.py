#!/usr/bin/env python3
"""Searches every state that a session can get into, for one that must not be.

    session_model.py                    everything, an hour and many GB
    session_model.py --quick            what CI runs: within two minutes on two cores
    session_model.py direction NAME..   these scenarios of one direction
    session_model.py mutants [NAME..]   the protocol with one mistake each: all have to be found
    session_model.py replies            the other direction
    session_model.py pressure           whether both directions together can stand still

README.md, beside this file, says what is modelled and what is not.
"""

import sys
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple


class Wrong(Exception):
    """A state that must not be."""


def search(start, successors, check=None, limit=20_000_000):
    """All states that can be reached from `start`, breadth first: how it ended, how many there were, and why."""
    began = time.time()
    seen, queue = {start}, deque([start])
    try:
        while queue:
            for state in successors(queue.popleft()):
                if state not in seen:
                    if check:
                        check(state)
                    seen.add(state)
                    queue.append(state)
            if len(seen) > limit:
                return "TOO MANY", len(seen), time.time() - began, ""
        return "HOLDS", len(seen), time.time() - began, ""
    except Wrong as wrong:
        return "FOUND", len(seen), time.time() - began, str(wrong)


def put(row, at, item):
    return row[:at] + (item,) + row[at + 1 :]


# ---------------------------------------------------------------------------------------------------------------------
# One direction. The end that dials sends, the end that listens receives.
#
# A message's fate is a letter: h held, A acknowledged, R refused, D in doubt, X given back as never sent.
# At the receiver it is in one of these states: i in the inbox, o with the program, a acknowledged by it, r refused,
# d dropped without a word.

OPEN, CLOSING, CLOSED, DEAD = 0, 1, 3, 4
SETTLED = "ard"


class Budget(NamedTuple):
    """How often each fault may still happen."""

    links: int
    crash: int = 0
    ttl: int = 0
    give_up: int = 0
    expire: int = 0
    refuse: int = 0
    drop: int = 0
    goaway: int = 0
    close: int = 0
    die: int = 0

    def use(self, fault):
        return self._replace(**{fault: getattr(self, fault) - 1})


class Sender(NamedTuple):
    accepted: int = 0
    fates: str = ""
    session: int = 0
    welcomed: int = 0
    epoch: int = 0
    acked: int = 0
    placed: tuple = ()  # the message at each position that was ever sent: its length is `sent`
    cursor: int = -1  # the next position on this connection; -1 until WELCOME
    link: int = -1
    state: int = OPEN
    draining: int = 0
    close_sent: int = 0
    confirms: int = 0


class Link(NamedTuple):
    """A connection, and what is on its way on it. Either end may be gone while the other is not."""

    session: int
    epoch: int
    up: tuple
    down: tuple = ()
    sender_up: int = 1
    receiver_up: int = 1
    hand: object = None  # counted as received, and not in the inbox yet
    clean: int = 0  # the sender has ended it with FIN


class Session(NamedTuple):
    """What the receiver has of a session."""

    session: int
    epoch: int
    base: int
    received: int
    items: tuple
    link: int
    end: int
    unconfirmed: tuple
    unwritten: tuple
    told: int
    gone: int  # forgotten: what its program has of it is here still, but nobody finds it


class State(NamedTuple):
    sender: Sender
    links: tuple
    sessions: tuple
    log: tuple  # what programs did in receivers that are dead
    budget: Budget


class Direction:
    def __init__(self, messages=3, window=2, links=3, explicit=0, mutant=None, **faults):
        self.messages, self.window, self.explicit, self.mutant = messages, window, explicit, mutant
        self.budget = Budget(links, **faults)
        self.start = State(Sender(), (), (), (), self.budget)
        self.reached = set()

    def run(self):
        result = search(self.start, self.successors, self.check)
        return result[:3] + (result[3] or "; ".join(sorted(self.reached)),)

    # What must hold in each state.

    def check(self, state):
        sender, _, sessions, log, budget = state
        self.note(sender)
        where = {}
        for message, token in log:
            if message in where:
                raise Wrong(f"twice: {message}")
            where[message] = token
        for session in sessions:
            last = -1
            for message, token in session.items:
                if message in where:
                    raise Wrong(f"twice: {message}")
                where[message] = token
                if message <= last:
                    raise Wrong(f"out of order: {message} after {last}")
                last = message
        granted = self.budget
        excused = budget.crash < granted.crash or budget.ttl < granted.ttl or budget.give_up < granted.give_up
        for message, fate in enumerate(sender.fates):
            token = where.get(message)
            if fate == "A" and token != "a":
                raise Wrong(f"acknowledged, not taken: {message} is {token}")
            if fate == "R" and token != "r":
                raise Wrong(f"called refused: {message} is {token}")
            if fate == "X" and token is not None:
                raise Wrong(f"called never sent: {message} is {token}")
            if fate == "D" and token != "d" and not excused:
                raise Wrong(f"in doubt without a reason: {message}")
        if len(sender.placed) - sender.acked > self.window:
            raise Wrong("over the window")
        if sender.state == CLOSED and "h" in sender.fates:
            raise Wrong("closed with messages held")

    def note(self, sender):
        """A check that reaches nothing proves nothing."""
        reached = self.reached
        reached.update("fate " + fate for fate in set(sender.fates))
        if sender.state == CLOSED:
            reached.add("closed clean")
        if sender.session and sender.welcomed:
            reached.add("next session open")
        if sender.welcomed and sender.epoch > 1 and sender.cursor >= 0:
            reached.add("resumed")
        if sender.fates == "A" * self.messages:
            reached.add("all acked")
        if sender.draining and sender.epoch > 1:
            reached.add("resumed while draining")

    def successors(self, state):
        # What moves by itself first: where both ends are up and nothing does, nothing may be left to do.
        moves = [*self.sender_sends(state), *self.bytes_move(state), *self.receiver_answers(state)]
        sender = state.sender
        if sender.link >= 0 and sender.cursor >= 0 and not moves:
            link = state.links[sender.link]
            waits = any(sender.fates[message] == "h" for message in sender.placed[sender.acked :])
            unsent = self.unsent(sender) >= 0 and not sender.draining
            if link.sender_up and link.receiver_up and (waits or sender.state == CLOSING or unsent):
                raise Wrong(f"stands still: {state}")
        return moves + [*self.programs_and_faults(state)]

    # The sender.

    @staticmethod
    def unsent(sender):
        for message, fate in enumerate(sender.fates):
            if fate == "h" and message not in sender.placed:
                return message
        return -1

    @staticmethod
    def next_session(sender, fates):
        return Sender(sender.accepted, fates, sender.session + 1, state=sender.state)

    def lost(self, sender):
        """The receiver's memory of the session is gone, or given up."""
        fates = sender.fates
        for message in sender.placed[sender.acked :]:
            if fates[message] == "h" and self.mutant != "auto_resend":
                fates = set_fate(fates, message, "X" if self.mutant == "claims_not_sent" else "D")
        return self.next_session(sender, fates)

    @staticmethod
    def ack(sender, taken):
        if not sender.acked <= taken <= len(sender.placed):
            raise Wrong(f"ACK {taken} of {sender.acked}..{len(sender.placed)}")
        fates, confirms = sender.fates, sender.confirms
        for position in range(sender.acked, taken):
            message = sender.placed[position]
            if fates[message] == "h":
                fates = set_fate(fates, message, "A")
            elif fates[message] in "RD":
                confirms = 1
        return sender._replace(fates=fates, acked=taken, confirms=confirms)

    def sender_sends(self, state):
        sender, links, mutant = state.sender, state.links, self.mutant
        if sender.state not in (OPEN, CLOSING) or sender.link < 0 or sender.cursor < 0:
            return
        at = sender.link
        link = links[at]
        if not link.sender_up:
            return

        def say(what, **changes):
            row = put(links, at, link._replace(up=link.up + (what,)))
            return state._replace(sender=sender._replace(**changes), links=row)

        cursor, placed, acked = sender.cursor, sender.placed, sender.acked
        more = self.unsent(sender)
        may_send = not sender.close_sent or mutant == "goaway_goes_on"
        in_window = len(placed) - acked < self.window or (mutant == "window_forgot" and sender.epoch > 1)
        if may_send and cursor < len(placed):
            yield say(("DATA", cursor, placed[cursor]), cursor=cursor + 1)
        elif may_send and (not sender.draining or mutant == "goaway_goes_on") and in_window and more >= 0:
            yield say(("DATA", cursor, more), placed=placed + (more,), cursor=cursor + 1)
        complete = sender.draining or (sender.state == CLOSING and more < 0)
        if not sender.close_sent and cursor == len(placed) and complete:
            yield say(("CLOSE", cursor), close_sent=1)
        if sender.confirms:
            yield say(("HEARTBEAT", cursor, acked), confirms=0)
        if sender.close_sent and (acked == len(placed) or mutant == "close_before_acks"):
            ended = put(links, at, link._replace(sender_up=0, clean=1))
            if sender.state == CLOSING and more < 0:
                fates = sender.fates.replace("h", "A") if mutant == "close_before_acks" else sender.fates
                over = sender._replace(fates=fates, link=-1, state=CLOSED)
                yield state._replace(sender=over, links=ended)
            else:
                yield state._replace(sender=self.next_session(sender, sender.fates), links=ended)
        if sender.draining and mutant == "goaway_moves_sent" and len(placed) > acked:
            ended = put(links, at, link._replace(sender_up=0))
            yield state._replace(sender=self.next_session(sender, sender.fates), links=ended)

    def sender_reads(self, state, at, link):
        sender = state.sender
        (kind, *what), rest = link.down[0], link.down[1:]
        if kind == "WELCOME":
            status, received, taken = what
            if status == "UNKNOWN":
                gone = link._replace(up=(), down=(), sender_up=0, receiver_up=0, clean=0)
                return state._replace(sender=self.lost(sender), links=put(state.links, at, gone))
            if status == "FENCED":
                raise Wrong("the newest is fenced")
            if not sender.acked <= taken <= received <= len(sender.placed):
                raise Wrong(f"positions: {sender.acked} <= {taken} <= {received} <= {len(sender.placed)}")
            sender = self.ack(sender, received if self.mutant == "trim_on_received" else taken)
            sender = sender._replace(welcomed=1, cursor=received, close_sent=0)
        elif kind == "ACK":
            sender = self.ack(sender, what[0])
        elif kind == "REFUSE":
            message = sender.placed[what[0]]
            if sender.fates[message] == "h":
                fate = "R" if what[1] == "r" else "D"
                sender = sender._replace(fates=set_fate(sender.fates, message, fate))
        else:  # GOAWAY
            sender = sender._replace(draining=1)
        return state._replace(sender=sender, links=put(state.links, at, link._replace(down=rest)))

    # The connections, and the receiver's reader.

    def bytes_move(self, state):
        sender, links = state.sender, state.links
        for at, link in enumerate(links):
            if at == sender.link and link.sender_up and link.down:
                yield self.sender_reads(state, at, link)
            if not link.sender_up and not link.clean and link.up and link.receiver_up:
                # The tail of what a dead sender wrote may never come.
                yield state._replace(links=put(links, at, link._replace(up=link.up[:-1])))
            if link.receiver_up and link.hand is None and link.up:
                after = self.receiver_reads(state, at, link)
                if after is not None:
                    yield after
            if link.hand is not None:
                # The second of two steps: what is counted goes into the inbox.
                j, session = self.session_of(state, link.session)
                position, message = link.hand
                if position != session.base + len(session.items):
                    raise Wrong(f"out of order: {position} behind {session.base + len(session.items)}")
                session = session._replace(items=session.items + ((message, "i"),))
                row = put(links, at, link._replace(hand=None))
                yield state._replace(links=row, sessions=put(state.sessions, j, session))
            if link.receiver_up and not link.sender_up and not link.up and link.hand is None:
                yield self.receiver_sees_the_end(state, at, link)

    @staticmethod
    def session_of(state, number):
        for j, session in enumerate(state.sessions):
            if session.session == number and not session.gone:
                return j, session
        return -1, None

    def receiver_reads(self, state, at, link):
        (kind, *what), rest = link.up[0], link.up[1:]
        j, session = self.session_of(state, link.session)
        if kind == "HELLO":
            return self.judge(state, at, link._replace(up=rest), j, *what)
        if session is None:
            raise Wrong("no session")
        hand = None
        if kind == "DATA":
            position, message = what
            if position != session.received:
                raise Wrong(f"position {position} is taken for {session.received}")
            if session.end >= 0:
                raise Wrong("DATA after CLOSE")
            session = session._replace(received=position + 1)
            hand = (position, message)
        elif kind == "CLOSE":
            if what[0] != session.received:
                raise Wrong(f"CLOSE at {what[0]}, {session.received} received")
            session = session._replace(end=what[0])
        else:  # HEARTBEAT
            sent, acked = what
            if sent != session.received:
                raise Wrong(f"HEARTBEAT at {sent}, {session.received} received")
            session = session._replace(unconfirmed=tuple(p for p in session.unconfirmed if p >= acked))
        row = put(state.links, at, link._replace(up=rest, hand=hand))
        return state._replace(links=row, sessions=put(state.sessions, j, session))

    def judge(self, state, at, link, j, welcomed, acked, sent):
        """HELLO. None where it has to wait for the reader of the connection before."""
        del sent
        links, mutant = state.links, self.mutant

        def turn_away(status):
            answer = link.down + (("WELCOME", status, 0, 0),)
            away = link._replace(up=(), down=answer, receiver_up=0, hand=None)
            return state._replace(links=put(links, at, away))

        session = state.sessions[j] if j >= 0 else None
        if session is None:
            if welcomed and mutant != "resume_creates":
                return turn_away("UNKNOWN")
            session = Session(link.session, link.epoch, acked, acked, (), at, -1, (), (), acked, 0)
            row = put(links, at, link._replace(down=link.down + (("WELCOME", "NEW", acked, acked),)))
            return state._replace(links=row, sessions=tuple(sorted(state.sessions + (session,))))

        older = link.epoch <= session.epoch and mutant != "stale_epoch"
        if link.epoch < session.epoch and not older:
            raise Wrong("an older connection fences a newer one")
        if older:
            return turn_away("FENCED")
        if not welcomed and mutant != "same_id_again":
            return turn_away("UNKNOWN")
        old = links[session.link] if 0 <= session.link != at else None
        if old and old.hand is not None and old.receiver_up and mutant != "fence_no_join":
            return None
        unconfirmed = tuple(p for p in session.unconfirmed if p >= acked)
        taken = self.taken(session)
        if unconfirmed and mutant != "welcome_uncapped":
            taken = min(taken, unconfirmed[0])
        received = session.received
        if mutant == "replay_from_acked":
            received = acked
        if mutant == "rec_reset":
            received = taken
        row = list(put(links, at, link._replace(down=link.down + (("WELCOME", "RESUMED", received, taken),))))
        if mutant != "no_fence":
            for other, its in enumerate(row):
                # A HELLO that was not read yet is judged when it comes.
                waits = its.up and its.up[0][0] == "HELLO"
                if other != at and its.session == link.session and its.receiver_up and not waits:
                    row[other] = its._replace(up=(), receiver_up=0)
        session = session._replace(
            epoch=link.epoch, received=received, link=at, end=-1, unconfirmed=unconfirmed, unwritten=unconfirmed, told=taken
        )
        return state._replace(links=tuple(row), sessions=put(state.sessions, j, session))

    def receiver_sees_the_end(self, state, at, link):
        sessions = state.sessions
        for j, session in enumerate(sessions):
            if session.session == link.session and session.link == at:
                settled = 0 <= session.end <= self.taken(session)
                # Also behind a FIN, which may come from something on the way: the positions are remembered until they expire.
                session = session._replace(link=-1)
                if settled and self.mutant == "tombstone_forgets":
                    session = session._replace(unconfirmed=(), unwritten=())
                sessions = put(sessions, j, session)
        row = put(state.links, at, link._replace(up=(), receiver_up=0, hand=None))
        return state._replace(links=row, sessions=sessions)

    # The receiver's program, and what it is told.

    def taken(self, session):
        taken = session.base
        if self.mutant == "highwater":
            for i, (_, token) in enumerate(session.items):
                if token in SETTLED:
                    taken = session.base + i + 1
            return taken
        for _, token in session.items:
            if token not in SETTLED:
                break
            taken += 1
        return taken

    def receiver_answers(self, state):
        links, mutant = state.links, self.mutant
        for j, session in enumerate(state.sessions):
            items = session.items

            def token(i, letter, items=items):
                return put(items, i, (items[i][0], letter))

            def with_session(session, links=links, j=j):
                return state._replace(links=links, sessions=put(state.sessions, j, session))

            for i, (_, letter) in enumerate(items):
                # Whoever consumes a stream acknowledges a message when it asks for the next.
                first = letter == "i" and all(other != "i" for _, other in items[:i])
                if first and (self.explicit or all(other != "o" for _, other in items)):
                    yield with_session(session._replace(items=token(i, "o")))
                elif letter == "o":
                    yield with_session(session._replace(items=token(i, "a")))
            at = session.link
            if at < 0 or not links[at].receiver_up or session.gone:
                continue

            def say(what, at=at):
                return put(links, at, links[at]._replace(down=links[at].down + (what,)))

            unwritten = session.unwritten
            if unwritten:
                position = unwritten[0]
                why = "r" if mutant == "drop_is_refuse" else items[position - session.base][1]
                unconfirmed = session.unconfirmed
                if mutant == "forget_refusals":
                    unconfirmed = tuple(p for p in unconfirmed if p != position)
                after = session._replace(unconfirmed=unconfirmed, unwritten=unwritten[1:])
                yield with_session(after, say(("REFUSE", position, why)))
            taken = session.received if mutant == "ack_on_parse" else self.taken(session)
            if unwritten and mutant != "ack_past_refused":
                taken = min(taken, unwritten[0])
            if taken > session.told:
                gone = int(mutant == "no_tombstone" and 0 <= session.end <= taken)
                yield with_session(session._replace(told=taken, gone=gone), say(("ACK", taken)))

    # What does not happen by itself.

    def programs_and_faults(self, state):
        sender, links, sessions, log, budget = state
        is_open = sender.state == OPEN
        if is_open and sender.accepted < self.messages:
            more = sender._replace(accepted=sender.accepted + 1, fates=sender.fates + "h")
            yield state._replace(sender=more)
        if is_open and budget.close:
            yield state._replace(sender=sender._replace(state=CLOSING), budget=budget.use("close"))
        if budget.expire:
            message = sender.fates.find("h") if self.mutant == "expire_sent" else self.unsent(sender)
            if message >= 0:
                after = sender._replace(fates=set_fate(sender.fates, message, "X"))
                yield state._replace(sender=after, budget=budget.use("expire"))
        if is_open and budget.die:
            row = links
            if sender.link >= 0:
                row = put(links, sender.link, links[sender.link]._replace(down=(), sender_up=0))
            dead = sender._replace(link=-1, state=DEAD)
            yield state._replace(sender=dead, links=row, budget=budget.use("die"))
        if sender.state in (OPEN, CLOSING) and sender.link < 0:
            waits = len(sender.placed) > sender.acked
            work = self.unsent(sender) >= 0 or waits or sender.state == CLOSING or sender.welcomed
            if budget.links and work:
                number, epoch = sender.session, sender.epoch + 1
                if not sender.welcomed and epoch > 1 and self.mutant != "same_id_again":
                    number, epoch = number + 1, 1  # Each attempt at a new session has an id of its own.
                hello = ("HELLO", sender.welcomed, sender.acked, len(sender.placed))
                link = Link(number, epoch, (hello,))
                dialed = sender._replace(
                    session=number, epoch=epoch, cursor=-1, link=len(links), close_sent=0, confirms=0
                )
                yield state._replace(sender=dialed, links=links + (link,), budget=budget.use("links"))
            if budget.give_up and (waits or sender.welcomed):
                yield state._replace(sender=self.lost(sender), budget=budget.use("give_up"))
        if sender.link >= 0 and links[sender.link].sender_up:
            broken = links[sender.link]._replace(down=(), sender_up=0, clean=0)
            after = sender._replace(cursor=-1, link=-1, close_sent=0)
            yield state._replace(sender=after, links=put(links, sender.link, broken))
        for j, session in enumerate(sessions):
            yield from self.receiver_faults(state, j, session)
        if budget.crash and sessions:
            did = tuple(item for session in sessions for item in session.items if item[1] != "i")
            # A HELLO that is still on its way, behind a proxy say, reaches the next receiver.
            late = [link.hand is None and link.up[:1] and link.up[0][0] == "HELLO" for link in links]
            row = tuple(its if stays else its._replace(up=(), receiver_up=0, hand=None) for its, stays in zip(links, late))
            after = state._replace(links=row, sessions=(), log=tuple(sorted(log + did)))
            yield after._replace(budget=budget.use("crash"))

    def receiver_faults(self, state, j, session):
        _, links, sessions, _, budget = state
        for i, (message, letter) in enumerate(session.items):
            if letter != "o":
                continue
            position = session.base + i
            told = session._replace(
                unconfirmed=tuple(sorted(session.unconfirmed + (position,))),
                unwritten=tuple(sorted(session.unwritten + (position,))),
            )
            if budget.refuse:
                after = told._replace(items=put(session.items, i, (message, "r")))
                yield state._replace(sessions=put(sessions, j, after), budget=budget.use("refuse"))
            if budget.drop:
                after = session if self.mutant == "drop_is_ack" else told
                after = after._replace(items=put(session.items, i, (message, "d")))
                yield state._replace(sessions=put(sessions, j, after), budget=budget.use("drop"))
        at = session.link
        attached = at >= 0 and links[at].receiver_up and not session.gone
        if attached and budget.goaway:
            row = put(links, at, links[at]._replace(down=links[at].down + (("GOAWAY",),)))
            yield state._replace(links=row, budget=budget.use("goaway"))
        if attached and links[at].hand is None:
            row = put(links, at, links[at]._replace(up=(), receiver_up=0))
            yield state._replace(links=row, sessions=put(sessions, j, session._replace(link=-1)))
        if at < 0 and budget.ttl and not session.gone:
            yield state._replace(sessions=put(sessions, j, session._replace(gone=1)), budget=budget.use("ttl"))


def set_fate(fates, message, fate):
    return fates[:message] + fate + fates[message + 1 :]


SCENARIOS = {
    "faults": dict(crash=1),
    "storm": dict(messages=2, links=5),
    "two-crashes": dict(messages=2, links=4, crash=2),
    "ttl": dict(messages=2, ttl=1, give_up=1, crash=1),
    "explicit": dict(links=2, refuse=1, drop=1, explicit=1),
    "refusals": dict(messages=2, refuse=2, drop=1, explicit=1),
    "refusal-crash": dict(messages=2, refuse=1, crash=1, explicit=1),
    "close": dict(messages=2, links=4, close=1),
    "close-refusal": dict(messages=1, refuse=1, close=1, explicit=1),
    "goaway": dict(goaway=1),
    "goaway-close": dict(messages=2, goaway=1, close=1),
    "message-ttl": dict(expire=1),
    "sender-dies": dict(messages=2, die=1, ttl=1, explicit=1, refuse=1),
    "all": dict(
        messages=2, links=2, crash=1, ttl=1, give_up=1, expire=1, refuse=1, drop=1, goaway=1, close=1, explicit=1
    ),
}
QUICK = ["faults", "explicit", "close-refusal", "goaway"]

# The mistake, and a scenario in which it has to be found.
MUTANTS = {
    "trim_on_received": "faults",  # the sender lets go of what is received, not of what is taken
    "ack_on_parse": "faults",  # ACK says what is received
    "no_fence": "faults",  # the connection before goes on bringing messages
    "fence_no_join": "faults",  # the fence does not wait for what its reader has in hand
    "stale_epoch": "faults",  # an older HELLO gets the session
    "replay_from_acked": "faults",  # the answer says `acked` for `received`
    "auto_resend": "faults",  # what is in doubt is sent again, in the next session
    "claims_not_sent": "faults",  # what an earlier connection carried is called never sent
    "resume_creates": "two-crashes",  # a session that is not known is made
    "same_id_again": "ttl",  # a HELLO for a new session that comes late makes one that the dialer comes back to
    "rec_reset": "faults",  # a resume forgets what was received and not taken
    "highwater": "explicit",  # the highest that is settled counts, not the lowest gap
    "drop_is_ack": "explicit",  # what the program drops counts as taken
    "drop_is_refuse": "explicit",  # what the program drops is told as refused
    "ack_past_refused": "refusals",  # ACK comes before the REFUSE that it passes
    "forget_refusals": "refusals",  # a refusal is forgotten when it is written
    "welcome_uncapped": "refusals",  # the handshake passes a refusal that may be lost
    "no_tombstone": "close",  # a session is forgotten with its last ACK
    "tombstone_forgets": "close-refusal",  # what is remembered of a session that is over are its positions alone
    "close_before_acks": "close",  # FIN behind CLOSE, without the acks
    "goaway_moves_sent": "goaway",  # what is sent and not acknowledged goes to the next session
    "goaway_goes_on": "goaway",  # more messages behind CLOSE
    "expire_sent": "message-ttl",  # a message that was sent expires
    "window_forgot": "faults",  # the window is not held after a resume
}


# ---------------------------------------------------------------------------------------------------------------------
# Replies. The end that dials receives: its HELLO says what it has, before it knows what the listener has seen of its acks.


class Listener(NamedTuple):
    accepted: int = 0
    fates: str = ""
    session: int = -1  # -1: there is none
    epoch: int = 0
    acked: int = 0
    placed: tuple = ()
    cursor: int = -1
    link: int = -1


class Dialer(NamedTuple):
    session: int = 0
    epoch: int = 0
    welcomed: int = 0
    received: int = 0
    items: tuple = ()
    link: int = -1
    dead: int = 0
    refused: tuple = ()  # positions that the listener has not confirmed
    unwritten: tuple = ()
    told: int = 0  # counts only where messages are refused


class Wire(NamedTuple):
    session: int
    epoch: int
    up: tuple
    down: tuple = ()
    dialer_up: int = 1
    listener_up: int = 1
    hand: object = None


class Both(NamedTuple):
    listener: Listener
    dialer: Dialer
    links: tuple
    log: tuple
    budget: tuple  # links, crashes of the listener, deaths of the dialer, refusals


class Replies:
    def __init__(self, messages=3, window=2, links=4, crash=1, die=1, refuse=0, mutant=None):
        self.messages, self.window, self.mutant = messages, window, mutant
        self.budget = (links, crash, die, refuse)
        self.start = Both(Listener(), Dialer(), (), (), self.budget)

    def run(self):
        return search(self.start, self.successors, self.check)

    def check(self, state):
        where = {}
        for message, token in state.log + state.dialer.items:
            if message in where:
                raise Wrong(f"twice: {message}")
            where[message] = token
        order = [message for message, _ in state.dialer.items]
        if order != sorted(order):
            raise Wrong("out of order")
        excused = state.budget[1:3] != self.budget[1:3]
        for message, fate in enumerate(state.listener.fates):
            if fate == "A" and where.get(message) != "a":
                raise Wrong(f"acknowledged, not taken: {message} is {where.get(message)}")
            if fate == "R" and where.get(message) != "r":
                raise Wrong(f"called refused: {message} is {where.get(message)}")
            if fate == "D" and not excused:
                raise Wrong(f"in doubt without a reason: {message}")

    @staticmethod
    def ack(listener, taken):
        if not listener.acked <= taken <= len(listener.placed):
            raise Wrong(f"ACK {taken} of {listener.acked}..{len(listener.placed)}")
        fates = listener.fates
        for position in range(listener.acked, taken):
            if fates[listener.placed[position]] == "h":
                fates = set_fate(fates, listener.placed[position], "A")
        return listener._replace(fates=fates, acked=taken)

    @staticmethod
    def taken(dialer):
        for taken, (_, token) in enumerate(dialer.items):
            if token == "i":
                return taken
        return len(dialer.items)

    def successors(self, state):
        moves = [*self.listener_sends(state)]
        for at, link in enumerate(state.links):
            moves.extend(self.link_moves(state, at, link))
        moves.extend(self.program_takes(state))
        listener, dialer, links = state.listener, state.dialer, state.links
        if not moves and dialer.link >= 0 and dialer.link == listener.link and not dialer.dead:
            link = links[dialer.link]
            if link.dialer_up and link.listener_up and listener.acked < len(listener.placed):
                raise Wrong(f"stands still: {state}")
        return moves + [*self.faults(state)]

    def program_takes(self, state):
        dialer = state.dialer
        at = self.taken(dialer)
        if at < len(dialer.items):
            taken = put(dialer.items, at, (dialer.items[at][0], "a"))
            yield state._replace(dialer=dialer._replace(items=taken))

    def faults(self, state):
        """What does not happen by itself: what programs do, and breaks."""
        listener, dialer, links, _, budget = state
        if listener.session >= 0 and listener.accepted < self.messages:
            more = listener._replace(accepted=listener.accepted + 1, fates=listener.fates + "h")
            yield state._replace(listener=more)
        # The dialer stops the reader of its old connection before it says what it has.
        reads = any(link.hand is not None and link.dialer_up for link in links)
        if not dialer.dead and dialer.link < 0 and budget[0] and (not reads or self.mutant == "dialer_no_join"):
            taken = self.taken(dialer)
            if dialer.refused:
                taken = min(taken, dialer.refused[0])
            hello = ("HELLO", dialer.welcomed, dialer.received, taken)
            link = Wire(dialer.session, dialer.epoch + 1, (hello,))
            after = dialer._replace(epoch=dialer.epoch + 1, link=len(links), unwritten=())
            yield state._replace(dialer=after, links=links + (link,), budget=(budget[0] - 1,) + budget[1:])
        at = self.taken(dialer)
        if budget[3] and at < len(dialer.items):
            refusing = dialer._replace(
                items=put(dialer.items, at, (dialer.items[at][0], "r")),
                refused=dialer.refused + (at,),
                unwritten=dialer.unwritten + (at,),
            )
            yield state._replace(dialer=refusing, budget=budget[:3] + (budget[3] - 1,))
        if listener.link >= 0 and links[listener.link].listener_up:
            broken = put(links, listener.link, links[listener.link]._replace(up=(), listener_up=0))
            yield state._replace(listener=listener._replace(cursor=-1, link=-1), links=broken)
        if dialer.link >= 0 and links[dialer.link].dialer_up:
            # What the reader has in hand it pushes first, or, in the mutant, later.
            link = links[dialer.link]
            if link.hand is None or self.mutant == "dialer_no_join":
                broken = link._replace(down=(), dialer_up=0 if link.hand is None else 1)
                yield state._replace(dialer=dialer._replace(link=-1), links=put(links, dialer.link, broken))
        yield from self.ends_die(state)

    def listener_sends(self, state):
        listener, links = state.listener, state.links
        if listener.link < 0 or not links[listener.link].listener_up:
            return
        at, link = listener.link, links[listener.link]

        def say(what, **changes):
            row = put(links, at, link._replace(down=link.down + (what,)))
            return state._replace(listener=listener._replace(**changes), links=row)

        cursor, placed = listener.cursor, listener.placed
        unsent = [m for m, fate in enumerate(listener.fates) if fate == "h" and m not in placed]
        if cursor < len(placed):
            yield say(("DATA", cursor, placed[cursor]), cursor=cursor + 1)
        elif unsent and len(placed) - listener.acked < self.window:
            yield say(("DATA", cursor, unsent[0]), placed=placed + (unsent[0],), cursor=cursor + 1)

    def link_moves(self, state, at, link):
        listener, dialer, links = state.listener, state.dialer, state.links
        if link.listener_up and link.up:
            (kind, *what), rest = link.up[0], link.up[1:]
            if kind == "HELLO":
                after = self.judge(state, at, link._replace(up=rest), *what)
                if after is not None:
                    yield after
            elif at == listener.link:
                yield self.listener_hears(state, at, link._replace(up=rest), kind, what)
        if link.dialer_up and link.down and link.hand is None and at == dialer.link:
            yield self.dialer_reads(state, at, link)
        if link.hand is not None and link.dialer_up:
            position, message = link.hand
            if position != len(dialer.items):
                raise Wrong("out of order")
            after = dialer._replace(items=dialer.items + ((message, "i"),))
            yield state._replace(dialer=after, links=put(links, at, link._replace(hand=None)))
        if at == dialer.link and link.dialer_up:
            yield from self.dialer_answers(state, at, link)
        if not link.dialer_up and link.up:
            yield state._replace(links=put(links, at, link._replace(up=link.up[:-1])))
        if link.listener_up and not link.dialer_up and not link.up:
            after = listener._replace(cursor=-1, link=-1) if listener.link == at else listener
            yield state._replace(listener=after, links=put(links, at, link._replace(up=(), listener_up=0)))

    def judge(self, state, at, link, welcomed, received, taken):
        listener, links = state.listener, state.links

        def turn_away(status):
            away = link._replace(up=(), down=link.down + (("WELCOME", status, 0),), listener_up=0)
            return state._replace(links=put(links, at, away))

        if listener.session == link.session:
            if link.epoch <= listener.epoch:
                return turn_away("FENCED")
            # What a refusal has stopped may be confirmed already: the dialer cannot know.
            known = taken if self.mutant == "strict_listener" else max(taken, listener.acked)
            if not listener.acked <= known <= received <= len(listener.placed):
                raise Wrong("positions")
            cursor = listener.acked if self.mutant == "listener_replays_acked" else received
            listener = self.ack(listener, received if self.mutant == "trim_on_received" else known)
            listener = listener._replace(epoch=link.epoch, cursor=cursor, link=at)
            says = listener.acked if self.budget[3] else 0  # Of use to whoever refuses, and else one more thing to tell states apart.
            row = [
                its if other == at or its.session != link.session else its._replace(up=(), listener_up=0)
                for other, its in enumerate(links)
            ]
            row[at] = link._replace(down=link.down + (("WELCOME", "RESUMED", says),), listener_up=1)
            return state._replace(listener=listener, links=tuple(row))
        if welcomed:
            return turn_away("UNKNOWN")
        if listener.session < 0:
            new = listener._replace(session=link.session, epoch=link.epoch, acked=0, placed=(), cursor=0, link=at)
            row = put(links, at, link._replace(down=link.down + (("WELCOME", "NEW", 0),), listener_up=1))
            return state._replace(listener=new, links=row)
        return None

    def listener_hears(self, state, at, link, kind, what):
        listener = state.listener
        if kind == "ACK":
            passed = [listener.fates[m] for m in listener.placed[listener.acked : what[0]]]
            listener = self.ack(listener, what[0])
            if "R" in passed:
                link = link._replace(down=link.down + (("HEARTBEAT", listener.acked),))
        else:  # REFUSE
            message = listener.placed[what[0]]
            if listener.fates[message] == "h":
                listener = listener._replace(fates=set_fate(listener.fates, message, "R"))
        return state._replace(listener=listener, links=put(state.links, at, link))

    def dialer_reads(self, state, at, link):
        dialer, links = state.dialer, state.links
        (kind, *what), rest = link.down[0], link.down[1:]
        after = put(links, at, link._replace(down=rest))
        if kind == "DATA":
            position, message = what
            if position != dialer.received:
                raise Wrong(f"position {position} is taken for {dialer.received}")
            after = put(links, at, link._replace(down=rest, hand=(position, message)))
            return state._replace(dialer=dialer._replace(received=position + 1), links=after)
        if kind == "HEARTBEAT":
            refused = tuple(p for p in dialer.refused if p >= what[0])
            return state._replace(dialer=dialer._replace(refused=refused), links=after)
        if what[0] == "UNKNOWN":
            gone = link._replace(up=(), down=(), dialer_up=0, listener_up=0, hand=None)
            fresh = Dialer(dialer.session + 1)
            return state._replace(dialer=fresh, links=put(links, at, gone), log=state.log + dialer.items)
        if what[0] == "FENCED":
            raise Wrong("the newest is fenced")
        dialer = dialer._replace(welcomed=1)
        if self.budget[3]:
            refused = tuple(p for p in dialer.refused if p >= what[1])
            told = self.taken(dialer) if self.mutant == "dialer_told_more" else what[1]
            dialer = dialer._replace(refused=refused, unwritten=refused, told=told)
        return state._replace(dialer=dialer, links=after)

    def dialer_answers(self, state, at, link):
        listener, dialer, links = state.listener, state.dialer, state.links
        taken = self.taken(dialer)

        def say(what, dialer):
            return state._replace(dialer=dialer, links=put(links, at, link._replace(up=link.up + (what,))))

        if not dialer.welcomed or not link.listener_up:
            return
        if not self.budget[3]:
            # Where nothing is refused, what the listener has, or is about to, is what it was told.
            acked = listener.acked if listener.link == at else 0
            if taken > acked and not any(what[0] == "ACK" and what[1] >= taken for what in link.up):
                yield say(("ACK", taken), dialer)
            return
        if any(what[0] in ("HELLO", "WELCOME") for what in link.up + link.down):
            return
        if dialer.unwritten:
            yield say(("REFUSE", dialer.unwritten[0]), dialer._replace(unwritten=dialer.unwritten[1:]))
            taken = min(taken, dialer.unwritten[0])
        if taken > dialer.told:
            yield say(("ACK", taken), dialer._replace(told=taken))

    @staticmethod
    def ends_die(state):
        listener, dialer, links, _, budget = state
        doubtful = listener.fates.replace("h", "D")
        if budget[1] and listener.session >= 0:
            after = Listener(listener.accepted, doubtful)
            row = tuple(link._replace(up=(), listener_up=0) for link in links)
            yield state._replace(listener=after, links=row, budget=(budget[0], budget[1] - 1) + budget[2:])
        if budget[2] and not dialer.dead:
            held = len(listener.placed)
            after = listener._replace(fates=doubtful, epoch=99, acked=held, cursor=-1, link=-1)
            row = tuple(link._replace(up=(), dialer_up=0, listener_up=0, hand=None) for link in links)
            yield state._replace(
                listener=after,
                dialer=dialer._replace(link=-1, dead=1),
                links=row,
                budget=budget[:2] + (0,) + budget[3:],
            )


REPLIES = [
    dict(messages=3, links=3),
    dict(messages=2, links=4, crash=2),
    dict(messages=3, links=4, crash=0, die=1),
    dict(messages=2, links=3, crash=0, die=0, refuse=2),
    dict(messages=2, links=3, crash=1, die=0, refuse=1),
]
QUICK_REPLIES = [0, 3, 4]
REPLY_MUTANTS = {
    "dialer_no_join": dict(messages=3, links=3),  # HELLO is written while the old reader has a message in hand
    "listener_replays_acked": dict(messages=3, links=3),
    "trim_on_received": dict(messages=3, links=3),
    "strict_listener": REPLIES[3],  # a refusal that is confirmed already makes positions that cannot be
    "dialer_told_more": REPLIES[3],  # what the program took after the HELLO counts as told
}


# ---------------------------------------------------------------------------------------------------------------------
# Pressure. Both directions at once, over pipes that hold few frames. The listener's program takes a message and sends so
# many replies before it takes the next; the dialer's program always reads.


class Flow(NamedTuple):
    sent: int = 0
    acked: int = 0
    up: tuple = ()
    inbox: int = 0
    stash: int = 0  # what was read on for the acks behind it
    taken: int = 0
    owed: int = 0  # replies
    replied: int = 0
    replies_acked: int = 0
    down: tuple = ()
    received: int = 0
    told: int = 0


class Pressure:
    def __init__(self, reads_on, messages=5, ratio=3, pipe=2, inbox=1, window=3, reply_window=3):
        self.reads_on, self.messages, self.ratio, self.pipe = reads_on, messages, ratio, pipe
        self.inbox, self.window, self.reply_window = inbox, window, reply_window

    def run(self):
        return search(Flow(), self.successors, self.check)

    def check(self, flow):
        if flow.inbox + flow.stash > max(self.window, self.inbox):
            raise Wrong("memory")

    def successors(self, flow):
        moves = [*self.moves(flow)]
        if not moves and (flow.acked < self.messages or flow.replies_acked < self.messages * self.ratio):
            raise Wrong("stands still")
        return moves

    def moves(self, flow):
        up, down = flow.up, flow.down
        replies_full = flow.replied - flow.replies_acked >= self.reply_window
        if flow.sent < self.messages and flow.sent - flow.acked < self.window and len(up) < self.pipe:
            yield flow._replace(sent=flow.sent + 1, up=up + ("DATA",))
        if flow.received > flow.told and len(up) < self.pipe:
            yield flow._replace(up=up + (("ACK", flow.received),), told=flow.received)
        if up and up[0] != "DATA":
            yield flow._replace(up=up[1:], replies_acked=up[0][1])
        elif up and flow.inbox < self.inbox and not flow.stash:
            yield flow._replace(up=up[1:], inbox=flow.inbox + 1)
        elif up and self.reads_on and replies_full and flow.inbox + flow.stash < self.window:
            yield flow._replace(up=up[1:], stash=flow.stash + 1)
        if flow.stash and flow.inbox < self.inbox:
            yield flow._replace(inbox=flow.inbox + 1, stash=flow.stash - 1)
        if flow.inbox and not flow.owed:
            yield flow._replace(inbox=flow.inbox - 1, taken=flow.taken + 1, owed=self.ratio)
        if flow.owed and not replies_full and len(down) < self.pipe:
            yield flow._replace(owed=flow.owed - 1, replied=flow.replied + 1, down=down + ("DATA",))
        done = flow.taken - (1 if flow.owed else 0)
        if done > flow.acked and len(down) < self.pipe and ("ACK", done) not in down:
            yield flow._replace(down=down + (("ACK", done),))
        if down and down[0] == "DATA":
            yield flow._replace(down=down[1:], received=flow.received + 1)
        elif down:
            yield flow._replace(down=down[1:], acked=max(flow.acked, down[0][1]))


def pressure():
    """How many settings there are, how many stand still without reading on, how many with it, and the states of the latter."""
    settings = without = with_it = states = 0
    for ratio in (1, 2, 3, 4):
        for window in (2, 3, 4):
            for reply_window in (1, 2, 3, 4):
                for pipe in (1, 2, 3):
                    sizes = dict(ratio=ratio, window=window, reply_window=reply_window, pipe=pipe)
                    settings += 1
                    without += Pressure(False, **sizes).run()[0] != "HOLDS"
                    how, count, _, _ = Pressure(True, **sizes).run()
                    with_it += how != "HOLDS"
                    states += count
    return settings, without, with_it, states


# ---------------------------------------------------------------------------------------------------------------------


def job(kind, name):
    """One search: whether it ended as it has to, how many states it saw of the protocol itself, and a line about it."""
    if kind == "pressure":
        began = time.time()
        settings, without, with_it, states = pressure()
        line = f"of {settings} settings {without} stand still without reading on, {with_it} with it"
        return without > 0 and with_it == 0, states, f"pressure   {states:9} states {time.time() - began:6.1f}s  {line}"
    if kind == "direction":
        scenario, expected = Direction(**SCENARIOS[name]), "HOLDS"
    elif kind == "mutant":
        scenario, expected = Direction(mutant=name, **SCENARIOS[MUTANTS[name]]), "FOUND"
    elif kind == "replies":
        scenario, expected = Replies(**REPLIES[name]), "HOLDS"
    else:
        scenario, expected = Replies(mutant=name, **REPLY_MUTANTS[name]), "FOUND"
    how, states, seconds, why = scenario.run()
    what = REPLIES[name] if kind == "replies" else name
    line = f"{kind:12} {how:8} {states:9} states {seconds:6.1f}s  {what}: {why[:150]}"
    return how == expected, states if expected == "HOLDS" else 0, line


def main():
    what, names = (sys.argv[1:2] or ["all"])[0], sys.argv[2:]
    scenarios = {"--quick": QUICK, "direction": names or list(SCENARIOS)}.get(what, list(SCENARIOS))
    everything = what in ("all", "--quick")
    jobs = []
    if everything or what == "direction":
        jobs += [("direction", name) for name in scenarios]
    if everything or what == "replies":
        jobs += [("replies", n) for n in range(len(REPLIES)) if what != "--quick" or n in QUICK_REPLIES]
        jobs += [("reply mutant", name) for name in REPLY_MUTANTS]
    if everything or what == "mutants":
        jobs += [("mutant", name) for name in names or MUTANTS]
    if everything or what == "pressure":
        jobs.append(("pressure", None))
    if not jobs:
        sys.exit(__doc__)
    total = wrong = 0
    with ProcessPoolExecutor(2) as pool:
        for good, states, line in pool.map(job, *zip(*jobs)):
            total += states
            wrong += not good
            print(line if good else f"{line}  <-- NOT AS EXPECTED", flush=True)
    print(f"{total} states of the protocol, {wrong} of {len(jobs)} searches not as expected")
    return wrong != 0


if __name__ == "__main__":
    sys.exit(main())
