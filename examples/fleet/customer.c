/* Customers of shops.
 *
 *   customer SOCKET WORD...         ask once, and print the answer
 *   customer --check SOCKET...      two customers in each shop, who check every answer until SIGTERM, and tell what they saw
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define EACH 2
#define MOST 64

static volatile sig_atomic_t over;

static struct customer {
    pthread_t thread;
    const char *shop;
    long orders, wrong;
} customers[MOST];

static int enter(const char *shop)
{
    struct sockaddr_un place = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(place.sun_path, sizeof place.sun_path, "%s", shop);
    if (fd < 0 || connect(fd, (struct sockaddr *)&place, sizeof place) < 0) {
        perror(shop);
        exit(1);
    }
    return fd;
}

/* Ask, and wait for the answer: 0 if there is none. */
static int ask(int fd, const char *question, char *answer, size_t size)
{
    size_t length = strlen(question), got = 0;
    if (send(fd, question, length, MSG_NOSIGNAL) != (ssize_t)length)
        return 0;
    while (got + 1 < size && (!got || answer[got - 1] != '\n')) {
        ssize_t more = recv(fd, answer + got, size - got - 1, 0);
        if (more <= 0)
            return 0;
        got += (size_t)more;
    }
    answer[got] = '\0';
    return 1;
}

static void *shop_on(void *argument)
{
    struct customer *c = argument;
    char answer[128], expected[128];
    int fd = enter(c->shop);
    while (!over && !c->wrong) {
        /* The shop counts along: an order that is lost, or taken twice, shows here. */
        snprintf(expected, sizeof expected, "OK %ld 255\n", ++c->orders);
        if (!ask(fd, "BUY tea 1\n", answer, sizeof answer) || strcmp(answer, expected) != 0)
            c->wrong++;
        if (!ask(fd, "PRICE milk 2\n", answer, sizeof answer) || strcmp(answer, "238\n") != 0)
            c->wrong++;
        usleep(200);
    }
    close(fd);
    return NULL;
}

static int check(char **shops, int count)
{
    long wrong = 0;
    int signal_number;
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    for (int i = 0; i < count * EACH; i++) {
        customers[i].shop = shops[i / EACH];
        if (pthread_create(&customers[i].thread, NULL, shop_on, &customers[i]))
            return 1;
    }
    sigwait(&ends, &signal_number);
    over = 1;
    for (int i = 0; i < count * EACH; i++) {
        pthread_join(customers[i].thread, NULL);
        printf("%s: %ld orders, %ld lost or wrong\n", customers[i].shop, customers[i].orders, customers[i].wrong);
        wrong += customers[i].wrong;
    }
    return wrong != 0;
}

int main(int argc, char **argv)
{
    char question[128] = "", answer[128];
    if (argc > 2 && strcmp(argv[1], "--check") == 0 && argc - 2 <= MOST / EACH)
        return check(argv + 2, argc - 2);
    if (argc < 3) {
        fprintf(stderr, "usage: customer SOCKET WORD... | customer --check SOCKET...\n");
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        size_t used = strlen(question);
        snprintf(question + used, sizeof question - used, "%s%s", argv[i], i + 1 < argc ? " " : "\n");
    }
    if (!ask(enter(argv[1]), question, answer, sizeof answer)) {
        fprintf(stderr, "customer: no answer from %s\n", argv[1]);
        return 1;
    }
    fputs(answer, stdout);
    return 0;
}
