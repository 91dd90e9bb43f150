/*
 * The target of the objects benchmark: a list on the heap.
 *
 *   list N       prints "ready" when N nodes are there
 *   sum          -> the sum of their keys
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node {
	long key;
	struct node *next;
};

struct node *head;

__attribute__((noinline)) void build(long count)
{
	for (long i = 0; i < count; i++) {
		struct node *fresh = calloc(1, sizeof *fresh);
		fresh->key = i;
		fresh->next = head;
		head = fresh;
	}
}

__attribute__((noinline)) long sum(void)
{
	long all = 0;
	for (struct node *n = head; n; n = n->next)
		all += n->key;
	return all;
}

/* What calls left behind on the stack is no pointer that lives. */
__attribute__((noinline)) void wash(void)
{
	volatile char room[16384];
	for (unsigned i = 0; i < sizeof room; i++)
		room[i] = 0;
}

int main(int argc, char **argv)
{
	char line[64];

	build(argc > 1 ? atol(argv[1]) : 0);
	wash();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		long all = sum();
		wash();
		printf("%ld\n", all);
		fflush(stdout);
	}
	return 0;
}
