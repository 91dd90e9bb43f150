/*
 * The floor of a pause: seize every thread of PID, then interrupt them all, wait for each, let each go.
 * Prints the nanoseconds from the first interrupt to the last detach.  Nothing is read and nothing is written.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

enum { MOST = 4096 };

int main(int argc, char **argv)
{
	static int threads[MOST];
	struct timespec begin, end;
	struct dirent *entry;
	char path[64];
	int count = 0, status;
	DIR *folder;

	if (argc < 2)
		return 2;
	snprintf(path, sizeof path, "/proc/%s/task", argv[1]);
	folder = opendir(path);
	if (!folder)
		return 5;
	while ((entry = readdir(folder)) && count < MOST)
		if (entry->d_name[0] != '.')
			threads[count++] = atoi(entry->d_name);
	for (int i = 0; i < count; i++)
		if (ptrace(PTRACE_SEIZE, threads[i], NULL, NULL)) {
			perror("floor: PTRACE_SEIZE");
			return 5;
		}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; i < count; i++)
		if (ptrace(PTRACE_INTERRUPT, threads[i], NULL, NULL))
			return 5;
	for (int i = 0; i < count; i++)
		if (waitpid(threads[i], &status, __WALL) != threads[i] || !WIFSTOPPED(status))
			return 5;
	for (int i = 0; i < count; i++)
		if (ptrace(PTRACE_DETACH, threads[i], NULL, NULL))
			return 5;
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%lld\n", (end.tv_sec - begin.tv_sec) * 1000000000ll + (end.tv_nsec - begin.tv_nsec));
	return 0;
}
