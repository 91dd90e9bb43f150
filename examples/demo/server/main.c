/* The network: the main thread accepts, workers serve.  Each worker waits for its connections with epoll. */
#define _GNU_SOURCE
#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_WORKERS 64
#define LONGEST 4096

struct connection {
    int fd;
    size_t used;
    char input[LONGEST];
};

static int pollers[MOST_WORKERS];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int send_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return -1;
        data += sent;
        size -= (size_t)sent;
    }
    return 0;
}

/* Serve what has arrived; -1 when the connection is over. */
static int serve(struct connection *c)
{
    char output[LONGEST + 64];
    ssize_t got = read(c->fd, c->input + c->used, sizeof c->input - c->used);
    if (got <= 0)
        return -1;
    c->used += (size_t)got;
    char *start = c->input, *end;
    while ((end = memchr(start, '\n', c->used - (size_t)(start - c->input)))) {
        *end = '\0';
        if (send_all(c->fd, output, answer(start, output, sizeof output)) < 0)
            return -1;
        start = end + 1;
    }
    c->used -= (size_t)(start - c->input);
    memmove(c->input, start, c->used);
    return c->used < sizeof c->input ? 0 : -1;
}

static void *work(void *argument)
{
    int poller = *(int *)argument;
    struct epoll_event events[32];
    for (;;) {
        /* No retry on EINTR: a patch must not make one appear. */
        int count = epoll_wait(poller, events, 32, -1);
        if (count < 0)
            die("server: epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (serve(c) < 0) {
                close(c->fd);
                free(c);
            }
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int workers = argc > 1 ? atoi(argv[1]) : 4;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (workers < 1 || workers > MOST_WORKERS) {
        fprintf(stderr, "usage: server [WORKERS]\n");
        return 2;
    }
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 64) < 0)
        die("server: listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    for (int i = 0; i < workers; i++) {
        pthread_t thread;
        if ((pollers[i] = epoll_create1(EPOLL_CLOEXEC)) < 0 || pthread_create(&thread, NULL, work, &pollers[i]))
            die("server: worker");
    }
    printf("ready %d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (unsigned turn = 0;; turn++) {
        int yes = 1;
        struct connection *c = calloc(1, sizeof *c);
        if (!c || (c->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
            die("server: accept");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
        if (epoll_ctl(pollers[turn % (unsigned)workers], EPOLL_CTL_ADD, c->fd, &event) < 0)
            die("server: epoll_ctl");
    }
}
