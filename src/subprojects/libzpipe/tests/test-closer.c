/*
 * Tests of libzpipe: descriptors whose close() waits
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The peer is the server of a FUSE file system with one file, and does not
 * answer when that is closed; or has a TCP socket that lingers.
 */

#include <linux/fuse.h>
#include <netinet/in.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include "victim.h"

/*
 * The server is a process that ends with the test: then all that waits for it
 * gets an error.
 */
typedef struct Fuse {
    char *dir;
    int dev;
    pid_t pid;
    gint *flushes;              /* shared: the file was closed so often */
} Fuse;

static void fuse_answer(Fuse *f, uint64_t unique, int error, const void *data,
                        size_t len)
{
    struct fuse_out_header out = {
        .len = sizeof(out) + len, .error = error, .unique = unique
    };
    struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)data, len } };

    if (writev(f->dev, iov, len ? 2 : 1) < 0) {
        g_assert_true(errno == ENOENT || errno == ENODEV);
    }
}

static struct fuse_attr fuse_attr_of(uint64_t node)
{
    return (struct fuse_attr) {
        .ino = node, .mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0644,
        .nlink = 1, .blksize = 4096
    };
}

static void fuse_serve(Fuse *f, const struct fuse_in_header *in)
{
    struct fuse_init_out init = {
        .major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = 4096
    };
    struct fuse_entry_out entry = {
        .nodeid = 2, .entry_valid = 100, .attr_valid = 100,
        .attr = fuse_attr_of(2)
    };
    struct fuse_attr_out attr = {
        .attr_valid = 100, .attr = fuse_attr_of(in->nodeid)
    };
    struct fuse_open_out open = { .fh = 1 };

    switch (in->opcode) {
    case FUSE_INIT:
        fuse_answer(f, in->unique, 0, &init, sizeof(init));
        break;
    case FUSE_LOOKUP:
        fuse_answer(f, in->unique, 0, &entry, sizeof(entry));
        break;
    case FUSE_GETATTR:
        fuse_answer(f, in->unique, 0, &attr, sizeof(attr));
        break;
    case FUSE_OPEN:
        fuse_answer(f, in->unique, 0, &open, sizeof(open));
        break;
    case FUSE_FLUSH:
        g_atomic_int_inc(f->flushes);       /* and no answer */
        break;
    case FUSE_FORGET:
    case FUSE_RELEASE:
        break;
    default:
        fuse_answer(f, in->unique, -ENOSYS, NULL, 0);
    }
}

static void fuse_main(Fuse *f)
{
    uint8_t *buf = g_malloc(256 * KiB);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(f->dev, buf, 256 * KiB) > 0) {
        fuse_serve(f, (struct fuse_in_header *)buf);
    }
    _exit(0);
}

static bool fuse_open(Fuse *f)
{
    g_autofree char *options = NULL;

    *f = (Fuse) { .dev = open("/dev/fuse", O_RDWR | O_CLOEXEC) };
    if (f->dev < 0) {
        return false;
    }
    f->dir = g_dir_make_tmp("zpipe-XXXXXX", NULL);
    options = g_strdup_printf("fd=%d,rootmode=40000,user_id=0,group_id=0",
                              f->dev);
    if (mount("zpipe-test", f->dir, "fuse", MS_NOSUID | MS_NODEV, options)) {
        close(f->dev);
        rmdir(f->dir);
        g_free(f->dir);
        return false;
    }
    f->flushes = mmap(NULL, sizeof(gint), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    f->pid = fork();
    if (f->pid == 0) {
        fuse_main(f);
    }
    close(f->dev);
    return true;
}

/* What waits for an answer gets an error. */
static void fuse_close(Fuse *f)
{
    int status;

    umount2(f->dir, MNT_FORCE | MNT_DETACH);
    kill(f->pid, SIGKILL);
    g_assert_cmpint(waitpid(f->pid, &status, 0), ==, f->pid);
    munmap(f->flushes, sizeof(gint));
    g_assert_cmpint(rmdir(f->dir), ==, 0);
    g_free(f->dir);
}

static int fuse_file(Fuse *f)
{
    g_autofree char *name = g_build_filename(f->dir, "file", NULL);
    int fd = open(name, O_RDONLY | O_CLOEXEC);

    g_assert_cmpint(fd, >=, 0);
    return fd;
}

/* The handle answers, and its thread has not waited. */
static void expect_refusal(int odd)
{
    struct zp_msg last = { 0 };
    Victim v;

    victim_open(&v, true, 0);
    g_assert_true(raw_region(v.raw, 7, odd, 0, 4096, 0));
    for (int i = 0; i < 10; i++) {
        reap_all(v.zp);
        raw_turn(v.raw, &last);
    }
    g_assert_cmpint(last.type, ==, ZP_MSG_REGION_ANSWER);
    g_assert_cmpint(last.region.error, !=, 0);
    g_assert_cmpint(zpipe_state(v.zp), ==, ZPIPE_CONNECTED);
    zpipe_detach(v.zp);
    reap_all(v.zp);
    v.fds = -1;
    victim_close(&v);
}

static void test_fuse(void)
{
    Fuse f;
    int fd;

    if (!fuse_open(&f)) {
        g_test_skip("cannot mount FUSE here");
        return;
    }
    fd = fuse_file(&f);
    expect_refusal(fd);
    while (!g_atomic_int_get(f.flushes)) {
        g_usleep(1000);
    }
    fuse_close(&f);
    close(fd);
}

/* More of them than can be borne: then the connection is given up. */
static void test_fuse_many(void)
{
    Victim v;
    Fuse f;
    int fd;

    if (!fuse_open(&f)) {
        g_test_skip("cannot mount FUSE here");
        return;
    }
    fd = fuse_file(&f);
    victim_open(&v, true, 0);
    for (int i = 0; i < 100 && zpipe_state(v.zp) == ZPIPE_CONNECTED; i++) {
        raw_region(v.raw, i % 100, fd, 0, 4096, 0);
        reap_all(v.zp);
        raw_turn(v.raw, NULL);
    }
    g_assert_cmpint(victim_gone(&v), ==, -EMFILE);
    g_assert_cmpint(g_atomic_int_get(f.flushes), <=, 40);
    fuse_close(&f);
    close(fd);
    v.fds -= 1;
    /* the threads get on, and so does the library */
    victim_close(&v);
    victim_open(&v, true, 0);
    victim_close(&v);
}

/* Send descriptors with some bytes, over any socket. */
static void send_fds(int sock, const void *buf, size_t len, const int *fds,
                     int n)
{
    RawPeer raw = { .sock = sock };

    g_assert_true(raw_send_bytes(&raw, buf, len, fds, n));
}

static unsigned threads(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/task", 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    return n;
}

enum { PACKETS = 20, FDS_A_PACKET = 20 };

/* The same when nobody has read them: when the connection ends. */
static void test_fuse_left(void)
{
    struct zp_msg msg = { .magic = ZP_MAGIC, .type = ZP_MSG_REGION_DEL };
    int fds[FDS_A_PACKET];
    unsigned before;
    Victim v;
    Fuse f;

    if (!fuse_open(&f)) {
        g_test_skip("cannot mount FUSE here");
        return;
    }
    fds[0] = fuse_file(&f);
    for (int i = 1; i < FDS_A_PACKET; i++) {
        fds[i] = fds[0];
    }
    victim_open(&v, true, 0);
    for (int i = 0; i < PACKETS; i++) {
        send_fds(v.raw->sock, &msg, sizeof(msg), fds, FDS_A_PACKET);
    }
    before = threads();
    zpipe_detach(v.zp);
    /* each waits, for ever */
    g_assert_cmpuint(threads() - before, >=, 32);
    g_assert_cmpuint(threads() - before, <=, 32 + FDS_A_PACKET + 2);
    fuse_close(&f);
    close(fds[0]);
    v.fds -= 1;
    victim_close(&v);
}

/* Full, and told to wait for its data to go. */
static int lingering_socket(int *listener)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
    };
    struct linger linger = { .l_onoff = 1, .l_linger = 600 };
    socklen_t len = sizeof(addr);
    static char data[64 * KiB];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(*listener, (void *)&addr, len), ==, 0);
    g_assert_cmpint(listen(*listener, 1), ==, 0);
    getsockname(*listener, (void *)&addr, &len);
    g_assert_cmpint(connect(fd, (void *)&addr, len), ==, 0);
    g_assert_cmpint(fcntl(fd, F_SETFL, O_NONBLOCK), ==, 0);
    while (write(fd, data, sizeof(data)) > 0) {
        /* until it is full */
    }
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    return fd;
}

static void test_linger(void)
{
    int listener, fd = lingering_socket(&listener);
    struct zp_msg last = { 0 };
    Victim v;

    victim_open(&v, true, 0);
    g_assert_true(raw_region(v.raw, 7, fd, 0, 4096, 0));
    close(fd);                          /* the last is the library's */
    for (int i = 0; i < 10; i++) {
        reap_all(v.zp);
        raw_turn(v.raw, &last);
    }
    g_assert_cmpint(last.type, ==, ZP_MSG_REGION_ANSWER);
    close(listener);                    /* which resets it */
    v.fds -= 2;
    victim_close(&v);
}

enum {
    TOO_MANY, UNREAD, UNREAD_RESET, IN_BELL, IN_BELL_READ, IN_SOCKET, CASES
};

/* Descriptors that the library does not get to see, if it does not look. */
static void test_hidden(const void *opaque)
{
    struct zp_msg msg = { .magic = ZP_MAGIC, .type = ZP_MSG_REGION_DEL };
    int listener, fd = lingering_socket(&listener), many[3], sv[2];
    Victim v;

    victim_open(&v, true, 0);
    switch (GPOINTER_TO_INT(opaque)) {
    case TOO_MANY:
        many[0] = many[1] = STDERR_FILENO;
        many[2] = fd;
        send_fds(v.raw->sock, &msg, sizeof(msg), many, 3);
        close(fd);
        g_assert_cmpint(victim_gone(&v), ==, -EPROTO);
        break;
    case UNREAD:
        send_fds(v.raw->sock, &msg, sizeof(msg), &fd, 1);
        close(fd);
        break;
    case UNREAD_RESET:
        /* it leaves unread what we said: an error comes before the packet */
        g_assert_nonnull(zpipe_buffer_new(v.zp, 4096));
        send_fds(v.raw->sock, &msg, sizeof(msg), &fd, 1);
        close(fd);
        close(v.raw->sock);
        v.raw->sock = -1;
        break;
    case IN_BELL:
    case IN_BELL_READ:
        send_fds(v.raw->bell, "x", 1, &fd, 1);
        close(fd);
        for (int i = 0; opaque == GINT_TO_POINTER(IN_BELL_READ) && i < 200;
             i++) {
            victim_run(&v);             /* it empties the bell now and then */
            raw_kick(v.raw);
        }
        if (opaque == GINT_TO_POINTER(IN_BELL_READ)) {
            g_assert_cmpint(victim_gone(&v), ==, -EPROTO);
        }
        break;
    default:
        socket_pair(sv);
        send_fds(sv[0], "x", 1, &fd, 1);
        close(fd);
        g_assert_true(raw_region(v.raw, 7, sv[1], 0, 4096, 0));
        close(sv[0]);
        close(sv[1]);
        victim_run(&v);
    }
    zpipe_detach(v.zp);
    close(listener);                    /* which resets it */
    v.fds -= 2;
    victim_close(&v);
}

int main(int argc, char **argv)
{
    static const char *const names[CASES] = {
        "too-many", "unread", "unread-reset", "in-bell", "in-bell-read",
        "in-socket"
    };

    g_test_init(&argc, &argv, NULL);
    /* a close() that waits, where it must not, ends the test */
    alarm(100);
    for (int i = 0; i < CASES; i++) {
        g_autofree char *path = g_strdup_printf("/closer/hidden/%s", names[i]);

        g_test_add_data_func(path, GINT_TO_POINTER(i), test_hidden);
    }
    g_test_add_func("/closer/fuse", test_fuse);
    g_test_add_func("/closer/fuse-many", test_fuse_many);
    g_test_add_func("/closer/fuse-left", test_fuse_left);
    g_test_add_func("/closer/linger", test_linger);
    return g_test_run();
}
