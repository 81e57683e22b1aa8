/*
 * Unit test: posted output of character devices, readers that come and go
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The readers are this test, at the other ends of sockets that hold little.
 * The n-th byte that is written is pattern(n).  A writer that waits where it
 * must not is ended by an alarm; whether the main loop spins is seen by
 * counting what it finds to do, not by the time it takes.
 */

#include "qemu/osdep.h"
#include "chardev/char-fe.h"
#include "hw/char/char-post.h"
#include "qapi/error.h"
#include "qemu/config-file.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "qemu/sockets.h"
#include "system/async-call-vm.h"
#include "system/system.h"

#define LIMIT_S 60
/* More than the main loop has to do at a time in these tests */
#define MANY_DISPATCHES 10000
/* More than a small socket holds, less than the FIFO */
#define MANY 16000

typedef struct Reader {
    int fd;
    unsigned got;
} Reader;

typedef struct Test {
    CharPost post;
    CharFrontend fe;
    Reader readers[2];
    unsigned num_readers;
    unsigned written;
} Test;

static bool running;
static VMChangeStateHandler *vm_changed;
static unsigned closed_watched;

/*
 * What a VM would bring
 */

const VMStateInfo vmstate_info_uint32;
const VMStateInfo vmstate_info_buffer;

void async_call_show_site(AsyncCallSite *site)
{
}

bool runstate_is_running(void)
{
    return running;
}

VMChangeStateEntry *qemu_add_vm_change_state_handler(VMChangeStateHandler *cb,
                                                     void *opaque)
{
    vm_changed = cb;
    return opaque;
}

void qemu_del_vm_change_state_handler(VMChangeStateEntry *e)
{
}

/* A chardev whose first writes fail */
#define TYPE_FAILING "chardev-failing"

static unsigned failing;
static unsigned failing_got;

static int failing_write(Chardev *chr, const uint8_t *buf, int len)
{
    if (failing) {
        failing--;
        errno = ENOSPC;
        return -1;
    }
    failing_got += len;
    return len;
}

static void failing_class_init(ObjectClass *oc, const void *data)
{
    CHARDEV_CLASS(oc)->chr_write = failing_write;
}

static const TypeInfo failing_type = {
    .name = TYPE_FAILING,
    .parent = TYPE_CHARDEV,
    .class_init = failing_class_init,
};

/*
 * Helpers
 */

static uint8_t pattern(unsigned n)
{
    return (n * 0x9e3779b9u) >> 24;
}

static gint poll_and_look(GPollFD *fds, guint num, gint timeout_ms)
{
    gint ret = g_poll(fds, num, timeout_ms);

    for (guint i = 0; i < num; i++) {
        closed_watched += !!(fds[i].revents & G_IO_NVAL);
    }
    return ret;
}

/* Run the main loop until it has nothing to do. */
static void run_loop(void)
{
    unsigned done = 0;

    while (g_main_context_iteration(NULL, false)) {
        g_assert_cmpuint(++done, <, MANY_DISPATCHES);
    }
    g_assert_cmpuint(closed_watched, ==, 0);
}

static Chardev *new_chardev(const char *text)
{
    QemuOpts *opts = qemu_opts_parse_noisily(qemu_find_opts("chardev"), text,
                                             true);
    Chardev *chr;

    g_assert_nonnull(opts);
    chr = qemu_chr_new_from_opts(opts, NULL, &error_abort);
    qemu_opts_del(opts);
    return chr;
}

static void new_reader(Test *t, const char *id, bool small)
{
    g_autofree char *text = NULL;
    int bytes = 1;
    int pair[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    if (small) {
        setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    }
    g_unix_set_fd_nonblocking(pair[0], true, NULL);
    t->readers[t->num_readers++].fd = pair[0];
    text = g_strdup_printf("socket,id=%s,fd=%d", id, pair[1]);
    new_chardev(text);
}

static void test_start(Test *t, Chardev *chr)
{
    running = true;
    closed_watched = 0;
    qemu_chr_fe_init(&t->fe, chr, &error_abort);
    qemu_chr_fe_set_handlers(&t->fe, NULL, NULL, NULL, NULL, NULL, NULL, true);
    t->post.on = true;
    g_assert_true(char_post_realize(&t->post, &t->fe, "test", &error_abort));
    run_loop();
}

/* The second reader's socket is small. */
static void test_start_hub(Test *t, bool first_small)
{
    alarm(LIMIT_S);
    *t = (Test) { };
    new_reader(t, "a", first_small);
    new_reader(t, "b", true);
    test_start(t, new_chardev("hub,id=h,chardevs.0=a,chardevs.1=b"));
}

static void test_end_hub(Test *t)
{
    char_post_unrealize(&t->post);
    qemu_chr_fe_deinit(&t->fe, true);
    for (unsigned i = 0; i < t->num_readers; i++) {
        close(t->readers[i].fd);
    }
    object_unparent(OBJECT(qemu_chr_find("a")));
    object_unparent(OBJECT(qemu_chr_find("b")));
    alarm(0);
}

static void post(Test *t, unsigned count)
{
    g_autofree uint8_t *data = g_malloc(count);

    for (unsigned i = 0; i < count; i++) {
        data[i] = pattern(t->written++);
    }
    char_post_write(&t->post, &t->fe, data, count);
}

static unsigned waiting(Test *t)
{
    return fifo8_num_used(&t->post.fifo);
}

/* Read what is there; returns how much. */
static unsigned read_there(Reader *r)
{
    unsigned before = r->got;
    uint8_t data[4096];
    ssize_t ret;

    while ((ret = read(r->fd, data, sizeof(data))) > 0) {
        for (ssize_t i = 0; i < ret; i++) {
            g_assert_cmphex(data[i], ==, pattern(r->got));
            r->got++;
        }
    }
    g_assert_cmpint(ret, ==, -1);
    g_assert_cmpint(errno, ==, EAGAIN);
    return r->got - before;
}

/* All readers get all there is: none is stuck. */
static void read_rest(Test *t)
{
    unsigned got;

    do {
        got = 0;
        run_loop();
        for (unsigned i = 0; i < t->num_readers; i++) {
            got += read_there(&t->readers[i]);
        }
    } while (got);
    for (unsigned i = 0; i < t->num_readers; i++) {
        g_assert_cmpuint(t->readers[i].got, ==, t->written);
    }
    g_assert_cmpuint(waiting(t), ==, 0);
}

/*
 * Tests
 */

/* The reader for which a hub waits has room, now another one has none. */
static void test_hub_other_stalled(void)
{
    Test t;

    test_start_hub(&t, true);
    for (int stalled = 1; stalled >= 0; stalled--) {
        while (!waiting(&t)) {
            post(&t, 1);
        }
        read_there(&t.readers[!stalled]);
        run_loop();
        post(&t, 100);
        run_loop();
        g_assert_cmpuint(waiting(&t), >, 0);
        read_there(&t.readers[!stalled]);
        run_loop();
        read_rest(&t);
    }
    test_end_hub(&t);
}

/* One reader takes a part: the hub cannot say yet whom to watch. */
static void test_hub_part(void)
{
    Test t;

    test_start_hub(&t, false);
    for (int i = 0; i < 3; i++) {
        post(&t, MANY);
        g_assert_cmpuint(waiting(&t), >, 0);
        run_loop();
        g_assert_cmpuint(waiting(&t), >, 0);
        read_rest(&t);
    }
    test_end_hub(&t);
}

/* What waits was loaded, and goes on with the VM: nothing was written yet. */
static void test_hub_loaded(void)
{
    Test t;

    test_start_hub(&t, false);
    running = false;
    while (t.written < MANY) {
        fifo8_push(&t.post.fifo, pattern(t.written++));
    }
    running = true;
    vm_changed(&t.post, true, RUN_STATE_RUNNING);
    g_assert_cmpuint(waiting(&t), >, 0);
    read_rest(&t);
    test_end_hub(&t);
}

/* With room for all of it, it goes at once. */
static void test_hub_loaded_room(void)
{
    Test t;

    test_start_hub(&t, false);
    fifo8_push(&t.post.fifo, pattern(t.written++));
    vm_changed(&t.post, true, RUN_STATE_RUNNING);
    g_assert_cmpuint(waiting(&t), ==, 0);
    read_rest(&t);
    test_end_hub(&t);
}

/* What a device does when it is told: it writes again, and not too early. */
static struct {
    bool writing;
    unsigned calls;
} told;

static void write_again(CharPost *post)
{
    g_assert_false(told.writing);
    g_assert_true(runstate_is_running());
    told.calls++;
}

static void post_told(Test *t, unsigned count)
{
    told.writing = true;
    post(t, count);
    told.writing = false;
}

/* A disk that is full for one write does not cost what waits behind it. */
static void test_error_once(void)
{
    Test t = { };
    uint8_t data[4096] = { };

    alarm(LIMIT_S);
    failing = 1;
    test_start(&t, qemu_chardev_new("f", TYPE_FAILING, NULL, NULL,
                                    &error_abort));
    fifo8_push_all(&t.post.fifo, data, sizeof(data));
    vm_changed(&t.post, true, RUN_STATE_RUNNING);
    g_assert_cmpuint(waiting(&t), ==, 0);
    g_assert_cmpuint(failing_got, ==, sizeof(data) - 512);
    char_post_unrealize(&t.post);
    qemu_chr_fe_deinit(&t.fe, true);
    alarm(0);
}

static void connect_reader(Test *t, const char *path)
{
    Reader *r = &t->readers[0];

    r->fd = unix_connect(path, &error_abort);
    g_unix_set_fd_nonblocking(r->fd, true, NULL);
    r->got = t->written;
    run_loop();
    g_assert_true(t->fe.chr->be_open);
}

/* Until no more than @room bytes fit */
static void fill(Test *t, unsigned room)
{
    while (fifo8_num_free(&t->post.fifo) > room) {
        post(t, 1024);
    }
}

/*
 * A reader goes while the vCPU waits for it.  What waits is lost; nothing of
 * it stays behind, neither for the main loop nor for the next reader.
 */
static void test_reader_gone(void)
{
    g_autofree char *dir = g_dir_make_tmp("char-post-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "socket", NULL);
    g_autofree char *text = g_strdup_printf("socket,id=c,path=%s,server=on,"
                                            "wait=off", path);
    Test t = { .num_readers = 1 };
    int others[8];

    alarm(LIMIT_S);
    test_start(&t, new_chardev(text));
    connect_reader(&t, path);
    fill(&t, 1024);
    g_assert_cmpuint(waiting(&t), >, 0);
    close(t.readers[0].fd);
    post(&t, 2048);
    g_assert_cmpuint(waiting(&t), ==, 0);
    run_loop();
    /* the next reader's descriptors are others than those of the first */
    for (int i = 0; i < ARRAY_SIZE(others); i++) {
        others[i] = open("/dev/null", O_RDONLY);
    }
    connect_reader(&t, path);
    fill(&t, 32 * 1024);
    g_assert_cmpuint(waiting(&t), >, 0);
    read_rest(&t);
    for (int i = 0; i < ARRAY_SIZE(others); i++) {
        close(others[i]);
    }
    char_post_unrealize(&t.post);
    qemu_chr_fe_deinit(&t.fe, true);
    close(t.readers[0].fd);
    unlink(path);
    rmdir(dir);
    alarm(0);
}

/* Nobody is told from within a write, and nobody while the VM is stopped. */
static void test_emptied(void)
{
    g_autofree char *dir = g_dir_make_tmp("char-post-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "socket", NULL);
    g_autofree char *text = g_strdup_printf("socket,id=e,path=%s,server=on,"
                                            "wait=off", path);
    Test t = { .num_readers = 1 };

    alarm(LIMIT_S);
    test_start(&t, new_chardev(text));
    connect_reader(&t, path);
    t.post.emptied = write_again;
    told.calls = 0;

    /* the main loop writes the last of it */
    while (!waiting(&t)) {
        post_told(&t, 1024);
    }
    g_assert_cmpuint(told.calls, ==, 0);
    read_rest(&t);
    g_assert_cmpuint(told.calls, ==, 1);

    /* a write does, which finds no room: the reader has gone */
    while (fifo8_num_free(&t.post.fifo) > 1024) {
        post_told(&t, 1024);
    }
    close(t.readers[0].fd);
    post_told(&t, 2048);
    g_assert_cmpuint(waiting(&t), ==, 0);
    g_assert_cmpuint(told.calls, ==, 1);
    running = false;
    vm_changed(&t.post, false, RUN_STATE_PAUSED);
    run_loop();
    g_assert_cmpuint(told.calls, ==, 1);
    running = true;
    vm_changed(&t.post, true, RUN_STATE_RUNNING);
    run_loop();
    g_assert_cmpuint(told.calls, ==, 2);

    char_post_unrealize(&t.post);
    qemu_chr_fe_deinit(&t.fe, true);
    unlink(path);
    rmdir(dir);
    alarm(0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    qemu_init_main_loop(&error_abort);
    module_call_init(MODULE_INIT_QOM);
    type_register_static(&failing_type);
    qemu_add_opts(&qemu_chardev_opts);
    g_main_context_set_poll_func(NULL, poll_and_look);

    g_test_add_func("/char-post/hub/other-stalled", test_hub_other_stalled);
    g_test_add_func("/char-post/hub/part", test_hub_part);
    g_test_add_func("/char-post/hub/loaded", test_hub_loaded);
    g_test_add_func("/char-post/hub/loaded-room", test_hub_loaded_room);
    g_test_add_func("/char-post/reader-gone", test_reader_gone);
    g_test_add_func("/char-post/emptied", test_emptied);
    g_test_add_func("/char-post/error-once", test_error_once);
    return g_test_run();
}
