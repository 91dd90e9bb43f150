/* A client that keeps a server busy, checks every answer, and measures how long each took.
 *
 *   load PORT [CONNECTIONS]     prints "ready" once every connection has had an answer, goes on until its standard
 *                               input ends, and prints one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST 64

static struct client {
    pthread_t thread;
    int number, port;
    FILE *stream;
    long requests, errors;
    double total, longest; /* milliseconds */
} clients[MOST];

static pthread_barrier_t started;
static volatile int stop;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Send one request, and hold the answer against what it must be. */
static void ask(struct client *c, const char *request, const char *expected)
{
    char line[256] = "";
    double begin = now(), took;
    fputs(request, c->stream);
    fflush(c->stream);
    if (!fgets(line, sizeof line, c->stream)) {
        fprintf(stderr, "load: connection %d ended after %ld requests\n", c->number, c->requests);
        c->errors++;
        stop = 1;
        return;
    }
    took = now() - begin;
    c->requests++;
    c->total += took;
    if (took > c->longest)
        c->longest = took;
    if (strcmp(line, expected) != 0 && c->errors++ < 3)
        fprintf(stderr, "load: %.*s: %s", (int)strcspn(request, "\n"), request, line);
}

static int dial(int port)
{
    int yes = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((unsigned short)port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        perror("load: connect");
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return fd;
}

static void *run(void *argument)
{
    struct client *c = argument;
    char request[128], expected[128];
    for (long round = 1; !stop; round++) {
        snprintf(request, sizeof request, "INCR load%d\n", c->number);
        snprintf(expected, sizeof expected, "%ld\n", round); /* a request lost or served twice shows here */
        ask(c, request, expected);
        snprintf(request, sizeof request, "SET load%d round %ld\n", c->number, round);
        ask(c, request, "OK\n");
        snprintf(request, sizeof request, "GET load%d\n", c->number);
        snprintf(expected, sizeof expected, "round %ld\n", round);
        ask(c, request, expected);
        snprintf(request, sizeof request, "ADD mean%d %d\n", c->number, c->number);
        ask(c, request, "OK\n");
        snprintf(request, sizeof request, "GET nothing%d\n", c->number);
        ask(c, request, "NONE\n");
        if (round == 1)
            pthread_barrier_wait(&started);
    }
    fclose(c->stream);
    return NULL;
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 0, count = argc > 2 ? atoi(argv[2]) : 4;
    long requests = 0, errors = 0;
    double total = 0, longest = 0;
    if (port <= 0 || count < 1 || count > MOST) {
        fprintf(stderr, "usage: load PORT [CONNECTIONS]\n");
        return 2;
    }
    pthread_barrier_init(&started, NULL, (unsigned)count + 1);
    for (int i = 0; i < count; i++) {
        struct client *c = &clients[i];
        c->number = i;
        c->stream = fdopen(dial(port), "r+");
        if (!c->stream || pthread_create(&c->thread, NULL, run, c)) {
            perror("load");
            return 1;
        }
    }
    pthread_barrier_wait(&started);
    printf("ready\n");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    stop = 1;
    for (int i = 0; i < count; i++) {
        struct client *c = &clients[i];
        pthread_join(c->thread, NULL);
        requests += c->requests;
        errors += c->errors;
        total += c->total;
        longest = c->longest > longest ? c->longest : longest;
    }
    printf("{\"requests\": %ld, \"errors\": %ld, \"mean_ms\": %.4f, \"max_ms\": %.3f}\n", requests, errors,
           requests ? total / (double)requests : 0, longest);
    return errors != 0;
}
