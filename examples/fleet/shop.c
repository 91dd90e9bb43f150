/* The door: a thread for each customer. */
#include "shop.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void *serve(void *argument)
{
    FILE *customer = argument;
    char line[128], out[128];
    long orders = 0;
    while (fgets(line, sizeof line, customer)) {
        int length = answer(line, &orders, out, sizeof out);
        if (send(fileno(customer), out, (size_t)length, MSG_NOSIGNAL) != length)
            break;
    }
    fclose(customer);
    return NULL;
}

/* Open the door at `folder`/socket, and go on in the background as the process of `folder`/pid. */
static int open_door(const char *folder)
{
    struct sockaddr_un place = { .sun_family = AF_UNIX };
    char path[sizeof place.sun_path];
    int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(place.sun_path, sizeof place.sun_path, "%s/socket", folder);
    unlink(place.sun_path);
    if (door < 0 || bind(door, (struct sockaddr *)&place, sizeof place) < 0 || listen(door, 64) < 0)
        return -1;
    pid_t child = fork();
    if (!child) {
        setsid();
        freopen("/dev/null", "w", stdout);
        freopen("/dev/null", "w", stderr);
        return door;
    }
    snprintf(path, sizeof path, "%s/pid", folder);
    FILE *file = fopen(path, "w");
    if (child < 0 || !file)
        return -1;
    fprintf(file, "%d\n", child);
    exit(fclose(file) != 0);
}

int main(int argc, char **argv)
{
    int fd, door = argc == 2 ? open_door(argv[1]) : -1;
    if (door < 0) {
        perror("usage: shop FOLDER");
        return 2;
    }
    while ((fd = accept(door, NULL, NULL)) >= 0) {
        pthread_t thread;
        FILE *customer = fdopen(fd, "r");
        if (!customer || pthread_create(&thread, NULL, serve, customer))
            break;
        pthread_detach(thread);
    }
    return 1;
}
