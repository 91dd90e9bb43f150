/*
 * A server that forks its workers first: a parent and N - 1 children, each of which measures.
 *
 *   prefork N        prints "ready KIND" when all run; KIND is fifo or other
 *   pids             -> the process ids, the parent's last
 *   answers          -> the least and the largest of what answer() returns in the children, and what it does here
 *   reset            -> "ok"; the largest gaps start anew, and so does the time of changes
 *   gap              -> nanoseconds: the largest gap between two beats of any child since the reset
 *   window           -> nanoseconds between the first child that saw a new answer since the reset, and the last one
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PERIOD = 1000000, MOST = 1024 };

struct seen {
	_Atomic uint64_t largest, changed;
	_Atomic long answer;
	_Atomic int resets;
	pid_t pid;
};

static struct seen *children;
static _Atomic int *resets;

__attribute__((noinline)) long answer(long seed)
{
	return seed * 3 + 12;
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void work(struct seen *mine)
{
	uint64_t last = now();

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_TIMERSLACK, 1);
	for (;;) {
		struct timespec period = { 0, PERIOD };
		uint64_t t, gap;
		long value;

		nanosleep(&period, NULL);
		t = now();
		gap = t - last;
		last = t;
		if (atomic_load(&mine->resets) != atomic_load(resets)) {
			atomic_store(&mine->largest, 0);
			atomic_store(&mine->changed, 0);
			atomic_store(&mine->resets, atomic_load(resets));
		} else if (gap > atomic_load(&mine->largest)) {
			atomic_store(&mine->largest, gap);
		}
		value = answer(10);
		if (value != atomic_load(&mine->answer)) {
			atomic_store(&mine->answer, value);
			atomic_store(&mine->changed, t);
		}
	}
}

int main(int argc, char **argv)
{
	int count = (argc > 1 ? atoi(argv[1]) : 32) - 1, fifo;
	struct sched_param priority = { .sched_priority = 50 }, none = { 0 };
	char line[64];

	if (count < 1 || count > MOST)
		return 2;
	children = mmap(NULL, (MOST + 1) * sizeof *children, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (children == MAP_FAILED)
		return 2;
	resets = &children[MOST].resets;
	fifo = sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
	for (int i = 0; i < count; i++) {
		pid_t pid = fork();
		if (pid < 0)
			return 2;
		if (!pid)
			work(&children[i]);
		children[i].pid = pid;
	}
	sched_setscheduler(0, SCHED_OTHER, &none);
	for (int i = 0; i < count; i++)
		while (!atomic_load(&children[i].answer))
			usleep(1000);
	printf("ready %s\n", fifo ? "fifo" : "other");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		uint64_t largest = 0, first = 0, end = 0;
		long low = 0, high = 0;

		if (!strcmp(line, "reset\n")) {
			atomic_fetch_add(resets, 1);
			for (int i = 0; i < count; i++)
				while (atomic_load(&children[i].resets) != atomic_load(resets))
					usleep(100);
			puts("ok");
		}
		for (int i = 0; i < count; i++) {
			uint64_t gap = atomic_load(&children[i].largest), changed = atomic_load(&children[i].changed);
			long value = atomic_load(&children[i].answer);

			largest = gap > largest ? gap : largest;
			first = !i || changed < first ? changed : first;
			end = changed > end ? changed : end;
			low = !i || value < low ? value : low;
			high = value > high ? value : high;
		}
		if (!strcmp(line, "gap\n"))
			printf("%llu\n", (unsigned long long)largest);
		else if (!strcmp(line, "window\n"))
			printf("%llu\n", (unsigned long long)(first ? end - first : 0));
		else if (!strcmp(line, "answers\n"))
			printf("%ld %ld %ld\n", low, high, answer(10));
		else if (!strcmp(line, "pids\n")) {
			for (int i = 0; i < count; i++)
				printf("%d ", (int)children[i].pid);
			printf("%d\n", (int)getpid());
		}
		fflush(stdout);
	}
	return 0;
}
