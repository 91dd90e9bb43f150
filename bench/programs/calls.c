/*
 * The target of the call benchmark: "ready", then for every line "time COUNT" the nanoseconds that COUNT calls of
 * work() took and what they added up to, so that no call can have been left out.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

__attribute__((noinline, aligned(64))) unsigned long work(unsigned long value)
{
	return (value ^ (value >> 7)) * 3 + 1;
}

__attribute__((noinline, aligned(64))) static unsigned long loop(unsigned long count)
{
	unsigned long value = 1;

	while (count--)
		value = work(value);
	return value;
}

int main(void)
{
	char line[64];

	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		struct timespec begin, end;
		unsigned long sum;

		if (strncmp(line, "time ", 5))
			continue;
		clock_gettime(CLOCK_MONOTONIC, &begin);
		sum = loop(strtoul(line + 5, NULL, 10));
		clock_gettime(CLOCK_MONOTONIC, &end);
		printf("%lld %lu\n", (end.tv_sec - begin.tv_sec) * 1000000000ll + (end.tv_nsec - begin.tv_nsec), sum);
		fflush(stdout);
	}
	return 0;
}
