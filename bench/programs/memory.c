/*
 * The target of the memory benchmark: a variable that moves, beside much memory that is written to.
 *
 *   memory N     prints "ready" when N MB are written, all that a program may find there: numbers, text, zeros, addresses
 *   limit        -> what the variable holds
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct limits {
	long most;
	int used;
};

struct limits limits = { 12, 1 };

__attribute__((noinline)) long limit(void)
{
	return limits.most + limits.used;
}

static void fill(unsigned char *at, size_t size)
{
	unsigned state = 1;

	for (size_t page = 0; page + 4096 <= size; page += 4096) {
		unsigned char *here = at + page;

		for (int i = 0; i < 1024; i += 4) {
			state = state * 1103515245 + 12345;
			memcpy(here + i, &state, 4);
		}
		memset(here + 1024, ' ' + page / 4096 % 64, 1024);
		for (int i = 2048; i < 3072; i += 8) {
			unsigned char *to = at + (page + 64 * i) % size;
			memcpy(here + i, &to, 8);
		}
	}
}

int main(int argc, char **argv)
{
	char line[64];
	size_t size = (argc > 1 ? strtoul(argv[1], NULL, 10) : 0) << 20;
	unsigned char *much = size ? malloc(size) : NULL;

	if (much)
		fill(much, size);
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		printf("%ld\n", limit());
		fflush(stdout);
	}
	return much && much[0] == much[1] && much[1] == much[2] && much[2] > 255;
}
