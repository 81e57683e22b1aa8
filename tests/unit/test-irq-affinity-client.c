/*
 * Unit test: QEMU's connection to a helper that does not keep to the protocol
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The helper is this process; what a good one does is the subject of
 * tests/guest/test_irq_give_back.py.
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include "qemu/main-loop.h"
#include "qemu/memfd.h"
#include "qapi/error.h"
#include "system/irq-affinity-client.h"
#include "system/irq-affinity-perf.h"
#include "system/irq-affinity-proto.h"
#include "system/irq-affinity-watch.h"

#define DEVICE "0000:01:00.0"
#define TAGS 8
/* for what hangs */
#define PATIENCE_US (60 * G_USEC_PER_SEC)

/*
 * @listener: the helper's
 * @near: the helper's end of a connection, -1: none
 * @asked: tags with a request under way
 * @ended: how many of these have ended
 * @errors: of the last one, by tag
 * @restored: restorations that have ended
 * @watched: events that were passed on
 * @fds: descriptors that were open at the start
 */
typedef struct Fixture {
    char *dir, *path;
    int listener;
    int near;
    IRQClient *c;
    unsigned connected;
    int asked[TAGS];
    int ended[TAGS];
    int errors[TAGS];
    unsigned restored;
    unsigned watched;
    unsigned fds;
} Fixture;

static unsigned count_fds(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    unsigned count = 0;

    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        count++;
    }
    return count;
}

static unsigned tag_of(void *tag)
{
    return GPOINTER_TO_UINT(tag) - 1;
}

static void *tag_at(unsigned i)
{
    return GUINT_TO_POINTER(i + 1);
}

static void cb_connected(void *opaque)
{
    ((Fixture *)opaque)->connected++;
}

static void cb_ended(Fixture *f, void *tag, int err)
{
    unsigned i = tag_of(tag);

    g_assert_cmpuint(i, <, TAGS);
    f->ended[i]++;
    f->errors[i] = err;
    g_assert_cmpint(f->ended[i], <=, f->asked[i]);
}

static void cb_moved(void *opaque, void *tag, int cpu, int err)
{
    cb_ended(opaque, tag, err);
}

static void cb_watched(void *opaque, void *tag, int fd)
{
    Fixture *f = opaque;

    if (fd >= 0) {
        f->watched++;
        close(fd);
    }
    cb_ended(f, tag, fd < 0);
}

static void cb_restored(void *opaque, void *tag, const IRQRestore *what,
                        int err)
{
    Fixture *f = opaque;

    g_assert_cmpstr(what->device, ==, DEVICE);
    g_assert_cmpstr(what->path, ==, "/machine/nic");
    f->restored++;
    cb_ended(f, tag, err);
}

static const IRQClientOps ops = {
    .connected = cb_connected,
    .moved = cb_moved,
    .watched = cb_watched,
    .restored = cb_restored,
};

static void set_up(Fixture *f, gconstpointer data)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    *f = (Fixture) { .near = -1 };
    f->dir = g_dir_make_tmp("irq-client-XXXXXX", NULL);
    g_assert_nonnull(f->dir);
    f->path = g_build_filename(f->dir, "socket", NULL);
    g_strlcpy(addr.sun_path, f->path, sizeof(addr.sun_path));
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
    g_assert_cmpint(bind(f->listener, (struct sockaddr *)&addr, sizeof(addr)),
                    ==, 0);
    g_assert_cmpint(listen(f->listener, 8), ==, 0);
    f->fds = count_fds();
    f->c = irq_client_new(f->path, &ops, f);
    irq_client_start(f->c);
}

static void hang_up(Fixture *f)
{
    if (f->near >= 0) {
        close(f->near);
        f->near = -1;
    }
}

static void tear_down(Fixture *f, gconstpointer data)
{
    irq_client_free(f->c);
    hang_up(f);
    g_assert_cmpuint(count_fds(), ==, f->fds);
    close(f->listener);
    unlink(f->path);
    rmdir(f->dir);
    g_free(f->path);
    g_free(f->dir);
}

/* Let the client do what it has to do now. */
static void run_client(void)
{
    for (int i = 0; i < 3; i++) {
        main_loop_wait(true);
    }
}

/* The client connects anew at intervals; each is the helper's only one. */
static void wait_accept(Fixture *f)
{
    int64_t end = g_get_monotonic_time() + PATIENCE_US;

    hang_up(f);
    while ((f->near = accept(f->listener, NULL, NULL)) < 0) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        run_client();
        g_usleep(1000);
    }
}

static IRQHelperRequest take_request(Fixture *f)
{
    IRQHelperRequest rq;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = { &rq, sizeof(rq) };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &control, .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg;

    g_assert_cmpint(recvmsg(f->near, &msg, 0), ==, sizeof(rq));
    cmsg = CMSG_FIRSTHDR(&msg);
    if (cmsg) {
        int fd;

        memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
        close(fd);
    }
    return rq;
}

#define FDS_MAX 8

static void send_fds(Fixture *f, const void *data, size_t len, int fd,
                     unsigned count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control = { };
    struct iovec iov = { (void *)data, len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (count) {
        struct cmsghdr *cmsg;

        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(count * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(count * sizeof(int));
        for (unsigned i = 0; i < count; i++) {
            memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &fd, sizeof(int));
        }
    }
    /* it may have hung up, or not have read for long */
    sendmsg(f->near, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static IRQHelperReply reply_to(const IRQHelperRequest *rq)
{
    return (IRQHelperReply) {
        .op = rq->op, .id = rq->id,
        .value = rq->op == IRQ_HELPER_HELLO ? IRQ_HELPER_VERSION : 0,
    };
}

static void greet(Fixture *f)
{
    IRQHelperRequest rq;
    IRQHelperReply reply;

    wait_accept(f);
    rq = take_request(f);
    g_assert_cmpuint(rq.op, ==, IRQ_HELPER_HELLO);
    g_assert_false(irq_client_connected(f->c));
    reply = reply_to(&rq);
    send_fds(f, &reply, sizeof(reply), -1, 0);
    run_client();
    g_assert_true(irq_client_connected(f->c));
}

static int ask_move(Fixture *f, unsigned i)
{
    int ret = irq_client_move(f->c, tag_at(i), 40 + i, DEVICE, f->listener,
                              getpid(), 1);

    f->asked[i] += ret == -EINPROGRESS;
    return ret;
}

static int ask_restore(Fixture *f, unsigned i)
{
    const IRQRestore what = {
        .irq = 40 + i, .device = DEVICE, .path = "/machine/nic",
        .list = "0-3",
    };
    int ret = irq_client_restore(f->c, tag_at(i), &what, f->listener,
                                 getpid());

    f->asked[i] += ret == -EINPROGRESS;
    return ret;
}

/* It ended as if there were no helper, and another connection is tried. */
static void assert_broken(Fixture *f, unsigned i)
{
    run_client();
    g_assert_false(irq_client_connected(f->c));
    g_assert_cmpint(f->ended[i], ==, f->asked[i]);
    g_assert_cmpint(f->errors[i], ==, ENOTCONN);
    g_assert_cmpint(ask_move(f, i), ==, -ENOTCONN);
}

/* Replies of every other length, from none on */
static void test_length(Fixture *f, gconstpointer data)
{
    char text[2 * sizeof(IRQHelperReply)] = "";

    for (size_t len = 0; len <= sizeof(text); len++) {
        IRQHelperRequest rq;
        IRQHelperReply reply;

        if (len == sizeof(reply)) {
            continue;
        }
        greet(f);
        g_assert_cmpint(ask_move(f, 0), ==, -EINPROGRESS);
        rq = take_request(f);
        reply = reply_to(&rq);
        memcpy(text, &reply, sizeof(reply));
        send_fds(f, text, len, f->near, len & 1);
        assert_broken(f, 0);
    }
}

/* Replies to what was not asked */
static void test_other(Fixture *f, gconstpointer data)
{
    for (int way = 0; way < 4; way++) {
        IRQHelperRequest rq;
        IRQHelperReply reply;

        greet(f);
        g_assert_cmpint(ask_move(f, 0), ==, -EINPROGRESS);
        rq = take_request(f);
        reply = reply_to(&rq);
        switch (way) {
        case 0:
            reply.id++;
            break;
        case 1:
            reply.op = IRQ_HELPER_RESTORE;
            break;
        case 2:
            /* the right one, and once more */
            send_fds(f, &reply, sizeof(reply), -1, 0);
            run_client();
            g_assert_cmpint(f->errors[0], ==, 0);
            g_assert_cmpint(ask_move(f, 0), ==, -EINPROGRESS);
            break;
        case 3:
            reply.op = reply.id = UINT32_MAX;
            break;
        }
        send_fds(f, &reply, sizeof(reply), f->near, 1);
        assert_broken(f, 0);
    }
}

/* What is no greeting */
static void test_hello(Fixture *f, gconstpointer data)
{
    for (int way = 0; way < 4; way++) {
        IRQHelperRequest rq;
        IRQHelperReply reply;

        wait_accept(f);
        rq = take_request(f);
        reply = reply_to(&rq);
        switch (way) {
        case 0:
            reply.value++;
            break;
        case 1:
            reply.error = EPROTONOSUPPORT;
            break;
        case 2:
            reply.error = UINT32_MAX;
            break;
        case 3:
            reply.id++;
            break;
        }
        send_fds(f, &reply, sizeof(reply), f->near, 1);
        run_client();
        g_assert_false(irq_client_connected(f->c));
    }
    g_assert_cmpuint(f->connected, ==, 0);
}

/* Descriptors where there is to be none, or one */
static void test_descriptors(Fixture *f, gconstpointer data)
{
    unsigned before;

    greet(f);
    before = count_fds();
    for (unsigned count = 0; count <= FDS_MAX; count++) {
        IRQHelperRequest rq;
        IRQHelperReply reply;

        g_assert_cmpint(ask_move(f, 0), ==, -EINPROGRESS);
        g_assert_cmpint(ask_restore(f, 1), ==, -EINPROGRESS);
        irq_client_watch(f->c, tag_at(2), getpid());
        f->asked[2]++;
        for (int i = 0; i < 3; i++) {
            rq = take_request(f);
            reply = reply_to(&rq);
            send_fds(f, &reply, sizeof(reply), f->near, count);
        }
        run_client();
        for (int i = 0; i < 3; i++) {
            g_assert_cmpint(f->ended[i], ==, count + 1);
        }
        g_assert_cmpuint(count_fds(), ==, before);
    }
    g_assert_cmpuint(f->watched, ==, FDS_MAX);

    /* an error comes with none; nor does one that nobody waits for stay */
    for (int way = 0; way < 2; way++) {
        IRQHelperRequest rq;
        IRQHelperReply reply;

        irq_client_watch(f->c, tag_at(3), getpid());
        f->asked[3]++;
        rq = take_request(f);
        reply = reply_to(&rq);
        reply.error = way ? 0 : ENOSPC;
        if (way) {
            irq_client_forget(f->c, tag_at(3));
        }
        send_fds(f, &reply, sizeof(reply), f->near, 1);
        run_client();
        g_assert_cmpint(f->ended[3], ==, 1);
        g_assert_cmpuint(count_fds(), ==, before);
    }
    g_assert_true(irq_client_connected(f->c));
    g_assert_cmpuint(f->watched, ==, FDS_MAX);
}

/* It goes with everything under way, and more that did not fit. */
static void test_goes(Fixture *f, gconstpointer data)
{
    unsigned more = 0;

    for (int way = 0; way < 2; way++) {
        greet(f);
        while (ask_move(f, 0) == -EINPROGRESS) {
            /* until it is full */
        }
        g_assert_cmpint(ask_move(f, 0), ==, -EAGAIN);
        for (unsigned i = 0; i < 50; i++) {
            g_assert_cmpint(ask_restore(f, 1), ==, -EINPROGRESS);
            more++;
        }
        if (way) {
            shutdown(f->near, SHUT_RDWR);
        } else {
            hang_up(f);
        }
        assert_broken(f, 0);
        g_assert_cmpuint(f->restored, ==, more);
        g_assert_cmpint(f->errors[1], ==, ENOTCONN);
    }
}

/*
 * What is passed in the place of the scheduler's event: a file that ends under
 * the mapping would end QEMU as well.
 */
static void test_event(void)
{
    unsigned before = count_fds();
    size_t size = 2 * qemu_real_host_page_size();
    g_autofree char *name = NULL;
    int pipes[2];

    for (int way = 0; way < 4; way++) {
        IRQWatch *w = irq_watch_new(NULL, getpid(), false, NULL, NULL);
        int fd = -1;

        switch (way) {
        case 0:
            fd = qemu_memfd_create("event", size, false, 0, 0, &error_abort);
            break;
        case 1:
            fd = g_file_open_tmp("irq-event-XXXXXX", &name, NULL);
            g_assert_cmpint(ftruncate(fd, size), ==, 0);
            unlink(name);
            break;
        case 2:
            g_assert_cmpint(pipe(pipes), ==, 0);
            close(pipes[1]);
            fd = pipes[0];
            break;
        case 3:
            fd = open("/dev/zero", O_RDWR);
            break;
        }
        g_assert_cmpint(fd, >=, 0);
        g_assert_false(irq_watch_use_perf(w, fd));
        g_assert_cmpint(irq_watch_source(w), ==, IRQ_AFFINITY_SOURCE_SAMPLE);
        irq_watch_free(w);
        g_assert_cmpuint(count_fds(), ==, before);
    }
}

/* One that the scheduler gives is taken. */
static void test_real_event(void)
{
    unsigned before = count_fds();
    int fd = irq_perf_open(getpid());
    IRQWatch *w;

    if (fd < 0) {
        g_test_skip("the kernel opens no event for this user");
        return;
    }
    w = irq_watch_new(NULL, getpid(), false, NULL, NULL);
    g_assert_true(irq_watch_use_perf(w, fd));
    g_assert_cmpint(irq_watch_source(w), ==, IRQ_AFFINITY_SOURCE_PERF);
    irq_watch_free(w);
    g_assert_cmpuint(count_fds(), ==, before);
}

static void count_calls(void *opaque, int cpu)
{
    ++*(unsigned *)opaque;
}

static void *open_and_end(void *opaque)
{
    *(int *)opaque = irq_perf_open(gettid());
    return NULL;
}

/* The event of a thread that has ended is dropped: it is readable for ever. */
static void test_event_ends(void)
{
    unsigned before = count_fds(), calls = 0;
    int fd = -1;
    IRQWatch *w;

    g_thread_join(g_thread_new("ends", open_and_end, &fd));
    if (fd < 0) {
        g_test_skip("the kernel opens no event for this user");
        return;
    }
    w = irq_watch_new(NULL, getpid(), false, count_calls, &calls);
    g_assert_true(irq_watch_use_perf(w, fd));
    while (!calls) {
        main_loop_wait(false);
    }
    g_assert_cmpint(irq_watch_source(w), ==, IRQ_AFFINITY_SOURCE_SAMPLE);
    irq_watch_free(w);
    g_assert_cmpuint(count_fds(), ==, before);
}

static void note_cpu(void *opaque, int cpu)
{
    *(int *)opaque = cpu;
}

static void run_on(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    g_assert_cmpint(sched_setaffinity(0, sizeof(set), &set), ==, 0);
}

/* An event is seen after some rounds only. */
static void run_client_for_long(void)
{
    for (int i = 0; i < 50; i++) {
        run_client();
        g_usleep(1000);
    }
}

/*
 * Move this thread to @cpu from another one until that is @told: a move before
 * the main loop polls the event need not be.
 */
static void move_to(int cpu, int from, const int *told)
{
    int64_t end = g_get_monotonic_time() + PATIENCE_US;

    while (*told != cpu) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        run_on(from);
        run_on(cpu);
        run_client_for_long();
    }
}

/* What was before the end of a pause, more than fits, is not told. */
static void test_pause(void)
{
    int fd = irq_perf_open(gettid()), told = -1, cpus[2], found = 0;
    IRQWatch *w;
    cpu_set_t set;

    g_assert_cmpint(sched_getaffinity(0, sizeof(set), &set), ==, 0);
    for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++) {
        if (CPU_ISSET(cpu, &set)) {
            cpus[found++] = cpu;
        }
    }
    if (fd < 0 || found < 2) {
        g_test_skip(fd < 0 ? "the kernel opens no event for this user"
                           : "there is one processor");
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    w = irq_watch_new(NULL, gettid(), false, note_cpu, &told);
    g_assert_true(irq_watch_use_perf(w, fd));
    move_to(cpus[1], cpus[0], &told);
    irq_watch_pause(w, true);
    told = -1;
    for (int i = 0; i < 500; i++) {
        run_on(cpus[i & 1]);
    }
    run_client_for_long();
    g_assert_cmpint(told, ==, -1);
    irq_watch_pause(w, false);
    run_client_for_long();
    g_assert_cmpint(told, ==, -1);
    g_assert_cmpint(irq_watch_source(w), ==, IRQ_AFFINITY_SOURCE_PERF);
    move_to(cpus[0], cpus[1], &told);
    irq_watch_free(w);
    g_assert_cmpint(sched_setaffinity(0, sizeof(set), &set), ==, 0);
}

/* Whatever it says: each request ends at most once, and none stays open. */
static void test_fuzz(Fixture *f, gconstpointer data)
{
    /* each connection that ends costs 0.1 s, until the next one is tried */
    unsigned rounds = g_test_slow() ? 200000 : 2000;
    unsigned base = 0, broken = 0, answered = 0, restores = 0;

    for (unsigned i = 0; i < rounds; i++) {
        IRQHelperRequest rq;
        IRQHelperReply reply = { };
        char text[64] = "";
        size_t len = sizeof(reply);
        unsigned at = g_test_rand_int_range(0, TAGS);

        if (!irq_client_connected(f->c)) {
            broken++;
            greet(f);
            base = count_fds();
        }
        for (int n = g_test_rand_int_range(0, 4); n > 0; n--) {
            switch (g_test_rand_int_range(0, 3)) {
            case 0:
                ask_move(f, at);
                break;
            case 1:
                restores += ask_restore(f, at) == -EINPROGRESS;
                break;
            case 2:
                irq_client_watch(f->c, tag_at(at), getpid());
                f->asked[at]++;
                break;
            }
        }
        if (g_test_rand_int_range(0, 4)) {
            struct pollfd pollfd = { .fd = f->near, .events = POLLIN };

            if (poll(&pollfd, 1, 0) > 0) {
                rq = take_request(f);
                reply = reply_to(&rq);
                answered++;
            }
        }
        if (!g_test_rand_int_range(0, 8)) {
            reply.error = g_test_rand_int();
        }
        memcpy(text, &reply, sizeof(reply));
        if (!g_test_rand_int_range(0, 16)) {
            text[g_test_rand_int_range(0, sizeof(reply))] = g_test_rand_int();
        }
        if (!g_test_rand_int_range(0, 64)) {
            len = g_test_rand_int_range(0, sizeof(text));
        }
        if (reply.op || !g_test_rand_int_range(0, 64)) {
            send_fds(f, text, len, f->near, g_test_rand_int_range(0, FDS_MAX));
        }
        if (!g_test_rand_int_range(0, 256)) {
            hang_up(f);
        }
        run_client();
        if (irq_client_connected(f->c)) {
            /* one that does not fit keeps a descriptor until it does */
            g_assert_cmpuint(count_fds(), <=,
                             base + restores - f->restored);
        }
    }
    g_assert_cmpuint(broken, >, rounds / 1000);
    g_assert_cmpuint(answered, >, rounds / 4);
    hang_up(f);
    run_client();
    g_assert_cmpuint(f->restored, ==, restores);
}

int main(int argc, char **argv)
{
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);
#define ADD(name, func) \
    g_test_add("/irq-affinity/client/" name, Fixture, NULL, set_up, func, \
               tear_down)
    ADD("length", test_length);
    ADD("other", test_other);
    ADD("hello", test_hello);
    ADD("descriptors", test_descriptors);
    ADD("goes", test_goes);
    ADD("fuzz", test_fuzz);
#undef ADD
    g_test_add_func("/irq-affinity/client/event", test_event);
    g_test_add_func("/irq-affinity/client/real-event", test_real_event);
    g_test_add_func("/irq-affinity/client/event-ends", test_event_ends);
    g_test_add_func("/irq-affinity/client/pause", test_pause);
    return g_test_run();
}
