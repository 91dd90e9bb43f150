/*
 * The target of the pause benchmark: N threads in all, of which one, the heartbeat, measures.
 *
 *   threads N [DEPTH] [stale]
 *                    prints "ready KIND" when every thread is where it stays; KIND is fifo or other
 *   answer           -> what answer() returns, the function that is patched
 *   more             -> the sum of what the functions give that stand in place of MORE, which are patched too
 *   reset            -> "ok"; the heartbeat's largest gap starts anew
 *   gap              -> nanoseconds: the largest gap between two beats since the reset
 *   idle MS          -> "ok" after that many milliseconds
 *
 * Workers block in read(2), DEPTH frames deep and three more, on a pipe that nobody writes to.  With `stale`, the
 * outermost of these frames holds a word that looks as if answer() were about to be returned to.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define FACTOR 3

enum { PERIOD = 50000, FRAME = 128 };

static int never[2];
static pthread_barrier_t placed;
static _Atomic uint64_t largest;
static _Atomic int beating;
static volatile unsigned long sink;
static volatile unsigned long inside = 4;
static unsigned depth = 14;
static int is_stale;

__attribute__((noinline)) long answer(long seed)
{
	return seed * FACTOR + 12;
}

#define FUNCTION(NUMBER) \
	__attribute__((noinline)) static long more_##NUMBER(long seed) { return seed * FACTOR + NUMBER; }
#define ENTRY(NUMBER) more_##NUMBER,
#define MORE(F) /*MORE*/
MORE(FUNCTION)
static long (*const more[])(long) = { MORE(ENTRY) 0 };

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((noinline)) static unsigned long descend(unsigned left, unsigned long value)
{
	unsigned long kept[4] = { value, value * 3, value ^ left, left };
	char byte;

	if (left)
		value = descend(left - 1, kept[left % 4]);
	else if (read(never[0], &byte, 1) == 1)
		value++;
	sink += kept[value % 4];
	return value + 1;
}

static void *work(void *argument)
{
	volatile unsigned long word = is_stale ? (unsigned long)answer + inside : 0;

	*(pid_t *)argument = gettid();
	pthread_barrier_wait(&placed);
	sink += descend(depth, 1);
	sink += word;
	return NULL;
}

static void *beat(void *argument)
{
	uint64_t last;

	(void)argument;
	prctl(PR_SET_TIMERSLACK, 1);
	atomic_store(&beating, 1);
	for (last = now();;) {
		struct timespec period = { 0, PERIOD };
		uint64_t t, gap;

		nanosleep(&period, NULL);
		t = now();
		gap = t - last;
		last = t;
		if (gap > atomic_load(&largest))
			atomic_store(&largest, gap);
	}
	return NULL;
}

/* Started by SCHED_FIFO where that is permitted; says whether it was. */
static int start_heartbeat(void)
{
	struct sched_param priority = { .sched_priority = 50 };
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
	pthread_attr_setschedparam(&attributes, &priority);
	if (pthread_create(&thread, &attributes, beat, NULL) == 0)
		return 1;
	if (pthread_create(&thread, NULL, beat, NULL) != 0)
		abort();
	return 0;
}

/* True when thread `tid` sleeps in a system call: its state in /proc is S. */
static int sleeps(pid_t tid)
{
	char path[64], text[256] = "";
	FILE *file;
	char *at;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
	file = fopen(path, "r");
	if (!file)
		return 0;
	if (!fgets(text, sizeof text, file))
		text[0] = 0;
	fclose(file);
	at = strrchr(text, ')');
	return at && at[1] == ' ' && at[2] == 'S';
}

int main(int argc, char **argv)
{
	int total = argc > 1 ? atoi(argv[1]) : 3, workers = total - 2, fifo;
	long sum;
	pid_t *ids = calloc((size_t)total + 1, sizeof *ids);
	char line[64];

	depth = argc > 2 ? (unsigned)atoi(argv[2]) : depth;
	is_stale = argc > 3;
	if (workers < 0 || !ids || pipe(never))
		return 2;
	pthread_barrier_init(&placed, NULL, (unsigned)workers + 1);
	for (int i = 0; i < workers; i++) {
		pthread_attr_t attributes;
		pthread_t thread;

		pthread_attr_init(&attributes);
		pthread_attr_setstacksize(&attributes, 256 * 1024 + (size_t)depth * FRAME);
		if (pthread_create(&thread, &attributes, work, &ids[i]))
			return 2;
	}
	pthread_barrier_wait(&placed);
	for (int i = 0; i < workers; i++)
		while (!sleeps(ids[i]))
			sched_yield();
	fifo = start_heartbeat();
	while (!atomic_load(&beating))
		sched_yield();
	printf("ready %s\n", fifo ? "fifo" : "other");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "answer\n")) {
			printf("%ld\n", answer(10));
		} else if (!strcmp(line, "more\n")) {
			sum = 0;
			for (int i = 0; more[i]; i++)
				sum += more[i](10);
			printf("%ld\n", sum);
		} else if (!strcmp(line, "reset\n")) {
			atomic_store(&largest, 0);
			puts("ok");
		} else if (!strcmp(line, "gap\n")) {
			printf("%llu\n", (unsigned long long)atomic_load(&largest));
		} else if (!strncmp(line, "idle ", 5)) {
			struct timespec t = { atoi(line + 5) / 1000, atoi(line + 5) % 1000 * 1000000L };
			nanosleep(&t, NULL);
			puts("ok");
		}
		fflush(stdout);
	}
	return 0;
}
