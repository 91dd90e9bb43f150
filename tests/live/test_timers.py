"""Timers of an event loop go on while a safe moment is waited for."""

from __future__ import annotations

from pathlib import Path

import pytest

from katana_cc.errors import BusyError
from katana_cc.patch.codec import encode, patch_id
from katana_cc.process.apply import apply_patch
from katana_cc.process.perf import Breakpoints
from tests.live.handmade import build, patch_from
from tests.live.programs import HEAD
from tests.live.server import serving
from tests.live.situations import situation

# One thread is inside `answer` for good; others wait for events that never come, 120 ms each time, and look at the
# clock.  `early` counts returns before the time is over; `odd` what else is not as it must be.
SOURCE = (
    HEAD
    + r"""
static volatile long turns[3], early, odd;
static void *inside(void *unused);
NOINLINE int answer(int x) { if (x < 0) { say("inside"); for (;;) pause(); } seen += x; /*ANSWER*/ return x + 1; }
static void *inside(void *unused) { answer(-1); return unused; }
static long ms(void) {
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}
static void *loop(void *mine) {
  int kind = (long)mine, e = epoll_create1(0); struct epoll_event event; sigset_t none; sigemptyset(&none);
  for (;;) {
    long before = ms();
    int r = kind == 2 ? epoll_pwait(e, &event, 1, 120, &none) : epoll_wait(e, &event, 1, 120);
    long took = ms() - before;
    if (took < 119) early++;
    if (r) odd++;
    turns[kind]++;
  }
  return 0;
}
int main(void) {
  pthread_t t;
  for (long i = 0; i < 3; i++) pthread_create(&t, 0, loop, (void *)i);
  say("ready");
  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'a') printf("%d\n", answer(atoi(line + 2)));
    if (line[0] == 'i') pthread_create(&t, 0, inside, 0);
    if (line[0] == 't') printf("%ld %ld %ld %ld %ld\n", turns[0], turns[1], turns[2], early, odd);
    fflush(stdout);
  }
  return 0;
}
"""
)

SECONDS = 3


@situation(42, "timers of event loops go on while a safe moment is waited for")
def test_timers_go_on_while_it_is_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: each stop began an epoll_wait anew, which never came to its end with a stop every 50 ms."""
    monkeypatch.setattr(Breakpoints, "add", lambda *_: False)  # so that it is looked every 50 ms
    old = build(tmp_path / "old", "server", SOURCE)
    patch = patch_from(old, build(tmp_path / "new", "server", SOURCE.replace("/*ANSWER*/", "x *= 10;")), ("answer",))
    with serving(old.output) as server:
        assert server.ask("i") == "inside"
        before = [int(word) for word in server.ask("t").split()]
        with pytest.raises(BusyError):
            apply_patch(patch, patch_id(encode(patch)), [server.pid], wait=SECONDS)
        after = [int(word) for word in server.ask("t").split()]
        assert after[3:] == [0, 0], "early, or with another result"
        for number in range(3):
            # Twice its length at most, each time: it may have begun before the first stop that it was seen in.
            assert after[number] - before[number] >= SECONDS * 1000 / 120 / 2.5
