/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* hello PATH: serve one client, or greet the server there; with zpipe.h only */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <zpipe.h>

int main(int argc, char **argv)
{
    struct zpipe *zp = zpipe_new(NULL);
    char text[64] = "hello";
    int ret = argc == 2 && zp ? zpipe_connect(zp, argv[1]) : -1;
    bool server = ret == -2 /* ENOENT */ || ret == -111 /* ECONNREFUSED */;

    if (server) {
        struct pollfd pfd = { zpipe_listen(argv[1]), POLLIN, 0 };

        poll(&pfd, 1, -1);
        ret = zpipe_attach(zp, zpipe_accept(pfd.fd), true);
    }
    ret = ret ? ret : zpipe_wait_connected(zp, 5000);
    if (ret == 0 && !server) {
        ret = zpipe_write_all(zp, text, sizeof(text));
    } else if (ret == 0 && zpipe_read_full(zp, text, sizeof(text)) > 0) {
        puts(text);
    }
    zpipe_free(zp);
    return ret ? fprintf(stderr, "hello: %s\n", strerror(-ret)), 1 : 0;
}
