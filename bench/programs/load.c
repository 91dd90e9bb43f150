/*
 * Load for a server: CONNECTIONS at once, each of which asks, waits for the answer, and asks again.
 *
 *   load PORT CONNECTIONS REQUEST REPLY OTHER
 *                    prints "ready" when all connections have had an answer
 *   reset            -> "ok"; counting starts anew
 *   report           -> "ANSWERS LOST P50 P999 LARGEST ELAPSED", the last four in nanoseconds
 *
 * An answer must be REPLY or OTHER, which are of one length; anything else, or a connection that is gone, is lost.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, LONGEST = 512, FINE = 64, BUCKETS = 48 * FINE };

struct connection {
	int fd;
	uint64_t asked;
	size_t got;
	char reply[LONGEST];
};

static struct connection all[MOST];
static uint64_t counts[BUCKETS], answers, lost, largest, begun;
static const char *request, *known[2];
static size_t request_size, reply_size;

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Buckets of a logarithmic histogram: 64 for each power of two, so that a value is right to 1.6 %. */
static int bucket(uint64_t value)
{
	int power = 63 - __builtin_clzll(value | 1);

	if (power < 6)
		return (int)value;
	return (power - 5) * FINE + (int)(value >> (power - 6)) - FINE;
}

static uint64_t middle(int index)
{
	int power = index / FINE + 5;

	if (index < FINE)
		return (uint64_t)index;
	return ((uint64_t)(FINE + index % FINE) << (power - 6)) + ((uint64_t)1 << (power - 6)) / 2;
}

static uint64_t quantile(double fraction)
{
	uint64_t wanted = (uint64_t)((double)answers * fraction), seen = 0;

	for (int i = 0; i < BUCKETS; i++) {
		seen += counts[i];
		if (seen > wanted)
			return middle(i);
	}
	return largest;
}

static void ask(struct connection *c)
{
	c->asked = now();
	c->got = 0;
	if (send(c->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size)
		lost++;
}

/* Returns whether the connection is still there. */
static int answered(struct connection *c)
{
	ssize_t n = recv(c->fd, c->reply + c->got, LONGEST - c->got, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 1;
	if (n <= 0) {
		lost++;
		return 0;
	}
	c->got += (size_t)n;
	if (c->got < reply_size)
		return 1;
	if (c->got > reply_size || (memcmp(c->reply, known[0], reply_size) && memcmp(c->reply, known[1], reply_size)))
		lost++;
	uint64_t took = now() - c->asked;
	answers++;
	counts[bucket(took)]++;
	largest = took > largest ? took : largest;
	ask(c);
	return 1;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct epoll_event event = { .events = EPOLLIN }, events[MOST];
	int poll = epoll_create1(0), count, one = 1, is_ready = 0;

	if (argc != 6 || strlen(argv[4]) != strlen(argv[5]) || strlen(argv[4]) > LONGEST)
		return 2;
	to.sin_port = htons((uint16_t)atoi(argv[1]));
	count = atoi(argv[2]);
	request = argv[3], request_size = strlen(request);
	known[0] = argv[4], known[1] = argv[5], reply_size = strlen(argv[4]);
	if (count < 1 || count > MOST)
		return 2;
	for (int i = 0; i < count; i++) {
		all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(all[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		if (connect(all[i].fd, (struct sockaddr *)&to, sizeof to))
			return 5;
		event.data.ptr = &all[i];
		epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event);
		ask(&all[i]);
	}
	event.data.ptr = NULL;
	epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event);
	begun = now();
	for (;;) {
		int found = epoll_wait(poll, events, MOST, -1);

		for (int i = 0; i < found; i++) {
			char line[64];
			ssize_t n;

			if (events[i].data.ptr) {
				struct connection *c = events[i].data.ptr;
				if (!answered(c))
					close(c->fd);
				continue;
			}
			n = read(0, line, sizeof line);
			if (n <= 0)
				return 0;
			if (line[0] == 'r' && line[2] == 's') {
				memset(counts, 0, sizeof counts);
				answers = lost = largest = 0;
				begun = now();
				puts("ok");
			} else {
				printf("%llu %llu %llu %llu %llu %llu\n", (unsigned long long)answers, (unsigned long long)lost,
				       (unsigned long long)quantile(0.5), (unsigned long long)quantile(0.999),
				       (unsigned long long)largest, (unsigned long long)(now() - begun));
			}
			fflush(stdout);
		}
		if (!is_ready && answers >= (uint64_t)count) {
			is_ready = 1;
			puts("ready");
			fflush(stdout);
		}
	}
}
