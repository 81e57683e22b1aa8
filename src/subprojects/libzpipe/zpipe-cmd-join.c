/*
 * zpipe listen, zpipe connect: standard input and output at a zpipe
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One thread, two directions, neither of which waits for the other.  In each
 * a few buffers go round: input is read into one while others are with the
 * library; output is written from one while others are posted.  Nothing else
 * is buffered, so that a slow output holds the peer back.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include "zpipe-cmd.h"

enum { BUFFERS = 8, BUFFER_BYTES = 256 << 10 };
/* The library takes some messages in a turn; a peer may have left many. */
enum { LOOKS = 32 };

struct buffer {
    struct zpipe_req req;
    struct iovec iov;
    void *memory;
};

/*
 * struct direction: buffers in a circle
 * @given: how many were given to the library
 * @back: how many came back from it, in the same order
 * @done: how many were written out (output only)
 * @offset: bytes of buffer @done that were written out
 * @ended: nothing more is to be done
 */
struct direction {
    struct buffer buffers[BUFFERS];
    unsigned given, back, done;
    size_t offset;
    bool ended;
};

struct join {
    const struct cmd_options *opt;
    struct zpipe *zp;
    struct direction in, out;   /* from standard input; to standard output */
    int out_fd;
    size_t out_limit;           /* of one write, so that it does not block */
    bool out_socket;
    bool failed;                /* an error was said */
    bool end_seen;              /* of the peer's stream */
    bool out_closed;            /* nobody reads our output */
    unsigned others;            /* looks since somebody else has come */
    uint64_t sent, received;
    uint64_t connects;          /* at the last look */
};

static struct buffer *at(struct direction *dir, unsigned n)
{
    return &dir->buffers[n % BUFFERS];
}

static void fail(struct join *j, const char *what, int error)
{
    if (!j->failed) {
        cmd_say("%s: %s", what, strerror(error));
    }
    j->failed = true;
}

/* The same, when the connection's end may have a reason in words. */
static void lost(struct join *j, const char *what, ssize_t result)
{
    const char *why = zpipe_error(j->zp, NULL);

    if (!j->failed) {
        cmd_say("%s: %s", what, *why ? why :
                strerror(result < 0 ? -result : EPIPE));
    }
    j->failed = true;
}

/*
 * Writing must not block, or a peer that waits for our input would wait for
 * ever.  O_NONBLOCK would change the file for all who share it; so open it
 * anew, or write only what poll() promises.  What has a position (a disk) is
 * not opened anew: it would be written from its beginning.
 */
static void open_output(struct join *j)
{
    struct stat st;
    int fd;

    j->out_fd = STDOUT_FILENO;
    j->out_limit = SIZE_MAX;
    if (fstat(STDOUT_FILENO, &st) || S_ISREG(st.st_mode) ||
        S_ISBLK(st.st_mode)) {
        return;
    }
    if (S_ISSOCK(st.st_mode)) {
        j->out_socket = true;
        return;
    }
    fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd >= 0) {
        j->out_fd = fd;
    } else {
        j->out_limit = PIPE_BUF;
    }
}

static void close_output(struct join *j)
{
    if (j->out_fd != STDOUT_FILENO) {
        close(j->out_fd);
    }
}

/*
 * Memory that the peer can reach; with --cma it can reach any, so take plain
 * memory and see what comes of it.
 */
static void *buffer_new(struct join *j)
{
    return j->opt->config.flags & ZPIPE_CMA ?
           malloc(BUFFER_BYTES) : zpipe_buffer_new(j->zp, BUFFER_BYTES);
}

static bool make_buffers(struct join *j, struct direction *dir)
{
    for (int i = 0; i < BUFFERS; i++) {
        struct buffer *b = &dir->buffers[i];

        b->memory = buffer_new(j);
        if (!b->memory) {
            fail(j, "memory for buffers", errno);
            return false;
        }
        b->iov.iov_base = b->memory;
    }
    return true;
}

/* After zpipe_free(), which frees what is its own. */
static void drop_buffers(struct join *j, struct direction *dir)
{
    for (int i = 0; i < BUFFERS && j->opt->config.flags & ZPIPE_CMA; i++) {
        free(dir->buffers[i].memory);
    }
}

/* ------------------------------------------------------------------- input */

static void end_input(struct join *j)
{
    int ret;

    j->in.ended = true;
    if (j->opt->receive_only) {
        return;
    }
    ret = zpipe_shutdown(j->zp);
    if (ret && ret != -ENOTCONN && ret != -EPIPE) {
        fail(j, "end of the input", -ret);
    }
}

static bool input_wanted(struct join *j)
{
    return !j->in.ended && j->in.given - j->in.back < BUFFERS;
}

static void read_input(struct join *j)
{
    struct buffer *b = at(&j->in, j->in.given);
    ssize_t got = read(STDIN_FILENO, b->memory, BUFFER_BYTES);
    int ret;

    if (got < 0) {
        if (errno != EINTR && errno != EAGAIN) {
            fail(j, "standard input", errno);
            end_input(j);
        }
        return;
    }
    if (got == 0) {
        end_input(j);
        return;
    }
    b->iov.iov_len = got;
    b->req = (struct zpipe_req){ .iov = &b->iov, .iovcnt = 1, .user = &j->in };
    ret = zpipe_write(j->zp, &b->req);
    if (ret) {
        fail(j, "send", -ret);
        j->in.ended = true;
        return;
    }
    j->in.given++;
}

static void input_taken(struct join *j, struct zpipe_req *req)
{
    struct buffer *b = at(&j->in, j->in.back++);

    if (req->result > 0) {
        j->sent += req->result;
    }
    if (req->result != (ssize_t)b->iov.iov_len) {
        lost(j, "the peer did not take all that was sent", req->result);
        j->in.ended = true;
    }
}

/* ------------------------------------------------------------------ output */

static void post_reads(struct join *j)
{
    struct direction *dir = &j->out;

    while (!dir->ended && dir->given - dir->done < BUFFERS) {
        struct buffer *b = at(dir, dir->given);
        int ret;

        b->iov.iov_len = BUFFER_BYTES;
        b->req = (struct zpipe_req){
            .iov = &b->iov, .iovcnt = 1, .user = dir,
        };
        ret = j->opt->view ? zpipe_read_view(j->zp, &b->req) :
                             zpipe_read(j->zp, &b->req);
        if (ret) {
            dir->ended = true;
            if (ret != -ENOTCONN) {
                fail(j, "receive", -ret);
            }
            return;
        }
        dir->given++;
    }
}

/*
 * We have ended our stream, and the peer has all of it.  If it goes now that is
 * its answer: one that knows no half-closed connection, as QEMU, does so.
 */
static bool answered(struct join *j)
{
    return j->in.ended && !j->opt->receive_only && j->in.given == j->in.back;
}

static void output_came(struct join *j, struct zpipe_req *req)
{
    j->out.back++;
    if (req->result > 0) {
        j->received += req->result;
        return;
    }
    j->out.ended = true;
    j->end_seen |= req->result == 0;
    if (req->result < 0 && req->result != -ECANCELED && !answered(j)) {
        lost(j, "the peer is gone before the end of its stream", req->result);
    }
}

/* Does a buffer wait to be written out?  Skips the empty ones. */
static bool output_wanted(struct join *j)
{
    struct direction *dir = &j->out;

    while (dir->done != dir->back && at(dir, dir->done)->req.result <= 0) {
        dir->done++;
    }
    return dir->done != dir->back;
}

static void write_output(struct join *j)
{
    struct direction *dir = &j->out;
    struct buffer *b = at(dir, dir->done);
    const char *from = b->req.view ?: b->memory;
    size_t left = b->req.result - dir->offset;
    ssize_t put;

    if (left > j->out_limit) {
        left = j->out_limit;
    }
    put = j->out_socket ?
          send(j->out_fd, from + dir->offset, left,
               MSG_DONTWAIT | MSG_NOSIGNAL) :
          write(j->out_fd, from + dir->offset, left);
    if (put < 0) {
        if (errno == EPIPE) {
            j->out_closed = true;
        } else if (errno != EAGAIN && errno != EINTR) {
            fail(j, "standard output", errno);
            j->out_closed = true;
        }
        return;
    }
    dir->offset += put;
    if (dir->offset == (size_t)b->req.result) {
        if (b->req.view) {
            zpipe_view_done(j->zp, &b->req);
        }
        dir->offset = 0;
        dir->done++;
    }
}

/* -------------------------------------------------------------------- both */

static void reap_all(struct join *j)
{
    struct zpipe_req *req;

    while ((req = zpipe_reap(j->zp))) {
        if (req->user == &j->in) {
            input_taken(j, req);
        } else {
            output_came(j, req);
        }
    }
}

static bool finished(struct join *j)
{
    bool all_sent = j->in.ended && j->in.given == j->in.back;
    bool all_written = j->out.ended && !output_wanted(j);

    if (j->out_closed || cmd_signal()) {
        return true;
    }
    if (j->opt->send_only) {
        return all_sent;
    }
    return all_written && (all_sent || j->opt->receive_only || j->failed);
}

/*
 * Somebody else who comes while the connection is up is sent away; but not
 * before all the news of the peer has been seen: it may have left, and this is
 * the next one, or the same again.  One that has news without end does not keep
 * others waiting for ever.
 */
static void refuse_others(struct join *j, struct cmd_link *link)
{
    struct pollfd pfd = { .fd = zpipe_fd(j->zp), .events = POLLIN };
    bool up = zpipe_state(j->zp) != ZPIPE_IDLE;

    if (!j->others || (up && j->others++ < LOOKS && poll(&pfd, 1, 0) > 0)) {
        return;
    }
    if (up) {
        cmd_link_refuse(link);
    }
    j->others = 0;
}

static void wait_for_work(struct join *j, struct cmd_link *link)
{
    bool up = zpipe_state(j->zp) != ZPIPE_IDLE;
    struct pollfd fds[] = {
        { .fd = zpipe_fd(j->zp), .events = POLLIN },
        { .fd = input_wanted(j) ? STDIN_FILENO : -1, .events = POLLIN },
        { .fd = output_wanted(j) ? j->out_fd : -1, .events = POLLOUT },
        { .fd = up ? link->listener : -1, .events = POLLIN },
    };

    zpipe_flush(j->zp);
    if (cmd_poll(fds, 4, -1) <= 0) {
        return;
    }
    if (fds[1].revents) {
        read_input(j);
    }
    if (fds[2].revents) {
        write_output(j);
    }
    if (fds[3].revents && !j->others) {
        j->others = 1;
    }
}

/* The connection was lost, or not made; true if there is a new one. */
static bool back_again(struct join *j, struct cmd_link *link)
{
    struct zpipe_stats stats;

    /* a peer that hung up on the end of our stream has all: that is the end */
    if (j->opt->reconnect_ms < 0 || answered(j)) {
        return false;
    }
    zpipe_get_stats(j->zp, &stats);
    if (stats.connects == j->connects) {
        cmd_link_say_failed(link, j->zp);
    } else {
        j->connects = stats.connects;
        link->said[0] = 0;
        if (j->opt->verbose) {
            cmd_tell("%s; waiting for a new connection",
                     zpipe_error(j->zp, NULL));
        }
    }
    return cmd_link_attach(link, j->zp);
}

/*
 * Has all that the peer left behind been read?  A read that is still waiting,
 * after reap_all(), found nothing.
 */
static bool drained(struct join *j)
{
    return j->out.ended || j->out.given != j->out.back;
}

/* Write out what came before the connection was lost. */
static void drain_output(struct join *j)
{
    struct pollfd pfd = { .fd = j->out_fd, .events = POLLOUT };

    while (output_wanted(j) && !j->out_closed && !cmd_signal()) {
        if (cmd_poll(&pfd, 1, -1) > 0) {
            write_output(j);
        }
    }
}

/*
 * The connection is gone for good.  That is no failure when nothing was lost:
 * the peer ended its stream, took all that we sent, and more there is not.
 */
static void peer_left(struct join *j)
{
    struct pollfd pfd = { .fd = STDIN_FILENO, .events = POLLIN };
    bool more = !j->in.ended && poll(&pfd, 1, 0) > 0;

    if (!j->failed && !cmd_signal() &&
        (!(j->end_seen || answered(j)) || more ||
         j->in.given != j->in.back)) {
        cmd_say("%s: %s", j->opt->path, zpipe_error(j->zp, NULL));
        j->failed = true;
    }
}

static void pump(struct join *j, struct cmd_link *link)
{
    if (j->opt->receive_only) {
        j->in.ended = true;
    }
    for (;;) {
        reap_all(j);
        if (finished(j)) {
            return;
        }
        refuse_others(j, link);
        if (zpipe_state(j->zp) == ZPIPE_IDLE && drained(j) &&
            !back_again(j, link)) {
            peer_left(j);
            drain_output(j);
            return;
        }
        post_reads(j);
        if (zpipe_state(j->zp) == ZPIPE_IDLE && drained(j)) {
            continue;           /* it had ended before there was a read */
        }
        wait_for_work(j, link);
    }
}

/* Serve one peer; false if there cannot be another. */
static bool serve(struct join *j, struct cmd_link *link)
{
    bool ready;

    j->failed = j->end_seen = false;
    j->others = 0;
    j->sent = j->received = j->connects = 0;
    memset(&j->in, 0, sizeof(j->in));
    memset(&j->out, 0, sizeof(j->out));
    j->zp = zpipe_new(&j->opt->config);
    if (!j->zp) {
        fail(j, "start", errno);
        return false;
    }
    ready = make_buffers(j, &j->in) && make_buffers(j, &j->out) &&
            cmd_link_join(link, j->zp);
    if (ready) {
        pump(j, link);
        if (j->opt->verbose) {
            cmd_tell("sent=%" PRIu64 " received=%" PRIu64, j->sent,
                     j->received);
            cmd_print_stats(j->zp);
        }
    } else {
        j->failed = true;
    }
    zpipe_free(j->zp);
    drop_buffers(j, &j->in);
    drop_buffers(j, &j->out);
    return ready && !j->out_closed && !cmd_signal();
}

int cmd_join(const struct cmd_options *opt)
{
    struct join *j = calloc(1, sizeof(*j));
    struct cmd_link link;
    bool failed, closed;

    if (!j || !cmd_link_open(&link, opt)) {
        free(j);
        return CMD_FAILED;
    }
    j->opt = opt;
    open_output(j);
    while (serve(j, &link) && opt->keep) {
        /* the next client */
    }
    cmd_link_close(&link);
    close_output(j);
    failed = j->failed;
    closed = j->out_closed;
    free(j);
    if (cmd_signal()) {
        cmd_die_by(cmd_signal());
    }
    if (closed && !failed) {
        cmd_die_by(SIGPIPE);
    }
    return failed ? CMD_FAILED : CMD_OK;
}
