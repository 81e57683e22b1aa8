/*
 * Tests of libzpipe: memory that is shown to the peer
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 */

#include "rawpeer.h"

#define LEN (200 * KiB)
#define NOBODY 65534

typedef struct Shared {
    int fd, id;
    uint8_t *mem;
    size_t size;
} Shared;

/* Without @sealed its owner, and root, could open it anew for writing. */
static void shared_open_how(Shared *s, struct zpipe *zp, size_t size,
                            bool sealed)
{
    s->size = size;
    if (sealed) {
        s->fd = memfd_shown(size, (void **)&s->mem);
    } else {
        s->fd = memfd_new(size, MFD_ALLOW_SEALING, F_SEAL_SHRINK);
        s->mem = map_new(s->fd, size);
    }
    s->id = zpipe_region_add(zp, s->fd, 0, s->mem, size);
    g_assert_cmpint(s->id, >=, 0);
}

static void shared_open(Shared *s, struct zpipe *zp, size_t size)
{
    shared_open_how(s, zp, size, true);
}

static void shared_close(Shared *s)
{
    munmap(s->mem, s->size);
    close(s->fd);
}

/* --------------------------------------------------- add and take away */

/* Taken away while data are shown from there: they go another way. */
static void del_shown(enum zpipe_mechanism mechanism, size_t taken_before)
{
    struct zpipe_config tx = config_of(mechanism, 0);
    g_autofree uint8_t *in = g_malloc0(LEN);
    Req *w, *r;
    Shared s;
    Pair p;

    pair_open(&p, &tx, NULL);
    shared_open(&s, p.tx, LEN);
    p.fds++;                            /* the memfd is ours */
    pair_settle(&p);
    g_assert_cmpint(stats_of(p.tx).regions, ==, 1);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 1);
    pat_fill(s.mem, LEN, 1, 0);
    w = req_new(s.mem, LEN);
    submit_write(p.tx, w);
    pair_settle(&p);
    if (taken_before) {
        r = req_new(in, taken_before);
        r->r.min = taken_before;
        submit_read(p.rx, r);
        pair_wait(&p, r);
        req_free(r);
    }
    zpipe_region_del(p.tx, s.id);
    pair_settle(&p);
    g_assert_cmpint(stats_of(p.tx).regions, ==, 0);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 0);
    r = req_new(in + taken_before, LEN - taken_before);
    r->r.min = LEN - taken_before;
    submit_read(p.rx, r);
    pair_wait(&p, r);
    pair_wait(&p, w);
    g_assert_cmpint(w->r.result, ==, LEN);
    pat_check(in, LEN, 1, 0);
    g_assert_cmpint(stats_of(p.tx).tx[ZPIPE_COPY].bytes, ==,
                    LEN - taken_before);
    req_free(w);
    req_free(r);
    pair_close(&p);
    shared_close(&s);
}

static void test_del_shown(void)
{
    del_shown(ZPIPE_MAP, 0);
    del_shown(ZPIPE_MAP, 12345);
    del_shown(ZPIPE_DIRECT, 0);
    del_shown(ZPIPE_DIRECT, 12345);
}

/* What a view points to stays readable until it is given back. */
static void test_view_outlives(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    Req *w, *v = req_new_view();
    Shared s;
    Pair p;

    pair_open(&p, &tx, NULL);
    shared_open(&s, p.tx, 4096);
    pat_fill(s.mem, 4096, 1, 0);
    pair_settle(&p);
    w = req_new(s.mem, 4096);
    submit_write(p.tx, w);
    submit_view(p.rx, v);
    pair_wait(&p, v);
    zpipe_free(p.tx);
    g_assert_cmpint(wait_gone(p.rx), <, 0);
    pat_check(v->r.view, 4096, 1, 0);
    zpipe_view_done(p.rx, &v->r);
    zpipe_free(p.rx);
    fd_check(p.fds + 1);
    shared_close(&s);
    req_free(w);
    req_free(v);
}

/* Numbers are used again; data never come from the one that had it before. */
static void test_reuse(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    Pair p;

    pair_open(&p, &tx, NULL);
    for (int i = 0; i < 500; i++) {
        uint8_t in[3000];
        Req *w, *r = req_new(in, sizeof(in));
        uint8_t *out = zpipe_buffer_new(p.tx, sizeof(in));

        g_assert_nonnull(out);
        pat_fill(out, sizeof(in), i, 0);
        if (i % 2) {
            pair_settle(&p);
        }
        w = req_new(out, sizeof(in));
        r->r.min = sizeof(in);
        submit_write(p.tx, w);
        submit_read(p.rx, r);
        pair_wait(&p, w);
        pat_check(in, sizeof(in), i, 0);
        zpipe_buffer_free(p.tx, out);
        req_free(w);
        req_free(r);
    }
    pair_settle(&p);
    g_assert_cmpint(stats_of(p.tx).regions, ==, 0);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 0);
    pair_close(&p);
}

static void test_max(void)
{
    uint8_t *buf[ZPIPE_REGIONS_MAX];
    Pair p;

    pair_open(&p, NULL, NULL);
    for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
        buf[i] = zpipe_buffer_new(p.tx, 4096);
        g_assert_nonnull(buf[i]);
    }
    errno = 0;
    g_assert_null(zpipe_buffer_new(p.tx, 4096));
    g_assert_cmpint(errno, ==, ENOSPC);
    pair_settle(&p);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, ZPIPE_REGIONS_MAX);
    zpipe_buffer_free(p.tx, buf[77]);
    buf[77] = zpipe_buffer_new(p.tx, 4096);
    g_assert_nonnull(buf[77]);
    pair_settle(&p);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, ZPIPE_REGIONS_MAX);
    g_assert_cmpint(stats_of(p.rx).refused_regions, ==, 0);
    zpipe_region_del(p.tx, -1);                 /* harmless */
    zpipe_region_del(p.tx, ZPIPE_REGIONS_MAX);
    pass(&p, 1000, 1, 0);
    pair_close(&p);
}

/* Known to a peer that comes later, and to the next one. */
static void test_before_and_after(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, ZPIPE_PERSISTENT);
    struct zpipe_config rx = config_of(ZPIPE_AUTO, ZPIPE_PERSISTENT);
    uint8_t in[4096];
    Req *w, *r = req_new(in, sizeof(in));
    Shared s;
    Pair p;

    pair_new(&p, &tx, &rx);
    shared_open(&s, p.tx, 4096);
    p.fds++;                            /* the memfd is ours */
    for (int i = 0; i < 3; i++) {
        pair_attach(&p);
        pair_settle(&p);
        pat_fill(s.mem, 4096, i, 0);
        w = req_new(s.mem, 4096);
        r->r.min = 4096;
        submit_write(p.tx, w);
        submit_read(p.rx, r);
        pair_wait(&p, w);
        pat_check(in, 4096, i, 0);
        g_assert_cmpint(stats_of(p.tx).tx[ZPIPE_DIRECT].bytes, ==,
                        4096 * (i + 1));
        req_free(w);
        zpipe_detach(p.tx);
        zpipe_detach(p.rx);
        pair_settle(&p);
        g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 0);
    }
    req_free(r);
    pair_close(&p);
    shared_close(&s);
}

/* One segment over two neighbouring regions, and beyond their ends. */
static void test_edges(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    const size_t page = 4096, size = 6 * page;
    void *base;
    int fd = memfd_shown(size, &base);
    uint8_t *mem = base;
    g_autofree uint8_t *in = g_malloc0(size);
    uint64_t pos = 0;
    Pair p;

    pair_open(&p, &tx, NULL);
    g_assert_cmpint(zpipe_region_add(p.tx, fd, page, mem + page, page), >=, 0);
    g_assert_cmpint(zpipe_region_add(p.tx, fd, 2 * page, mem + 2 * page,
                                     2 * page), >=, 0);
    pair_settle(&p);
    for (size_t from = 0; from < size; from += page / 2) {
        for (size_t len = page / 2; from + len <= size; len += page / 2) {
            Req *w = req_new(mem + from, len), *r = req_new(in, len);

            pat_fill(mem + from, len, 1, pos);
            r->r.min = len;
            submit_write(p.tx, w);
            submit_read(p.rx, r);
            pair_wait(&p, w);
            pat_check(in, len, 1, pos);
            pos += len;
            req_free(w);
            req_free(r);
        }
    }
    g_assert_cmpint(stats_of(p.tx).tx[ZPIPE_DIRECT].bytes, >, 0);
    pair_close(&p);
    munmap(mem, size);
    close(fd);
}

/* --------------------------------------------------------------- refusals */

static void refused(struct zpipe *zp, int fd, off_t offset, size_t size,
                    int err)
{
    static uint8_t mem[64 * KiB] __attribute__((aligned(4096)));
    int ret = zpipe_region_add(zp, fd, offset, mem, size);

    g_assert_cmpint(ret, ==, err);
    g_assert_cmpint(stats_of(zp).regions, ==, 0);
}

static void test_refused_files(void)
{
    char name[] = "/tmp/zpipe-test-XXXXXX";
    int pipefd[2], fd;
    Pair p;

    pair_open(&p, NULL, NULL);
    fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, 0);     /* can shrink */
    refused(p.tx, fd, 0, 64 * KiB, -EPERM);
    close(fd);
    fd = memfd_new(64 * KiB, 0, 0);                     /* for ever */
    refused(p.tx, fd, 0, 64 * KiB, -EPERM);
    close(fd);
    fd = mkstemp(name);
    unlink(name);
    g_assert_cmpint(ftruncate(fd, 64 * KiB), ==, 0);
    refused(p.tx, fd, 0, 64 * KiB, -EPERM);
    close(fd);
    g_assert_cmpint(pipe2(pipefd, O_CLOEXEC), ==, 0);
    refused(p.tx, pipefd[0], 0, 4096, -EPERM);
    refused(p.tx, pipefd[1], 0, 4096, -EPERM);
    close(pipefd[0]);
    close(pipefd[1]);
    fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
    refused(p.tx, fd, 0, 4096, -EPERM);
    close(fd);
    g_assert_cmpint(zpipe_region_add(p.tx, -1, 0, &p, 4096), <, 0);
    pass(&p, 1000, 1, 0);
    pair_close(&p);
}

static void test_refused_ranges(void)
{
    int fd = memfd_new(64 * KiB, MFD_ALLOW_SEALING, F_SEAL_SHRINK);
    Pair p;

    pair_open(&p, NULL, NULL);
    refused(p.tx, fd, 0, 0, -EINVAL);
    refused(p.tx, fd, 1, 4096, -EINVAL);
    refused(p.tx, fd, -4096, 4096, -EINVAL);
    refused(p.tx, fd, 0, 64 * KiB + 4096, -EINVAL);
    refused(p.tx, fd, 64 * KiB, 4096, -EINVAL);
    refused(p.tx, fd, 4096, SIZE_MAX - 4095, -EINVAL);
    refused(p.tx, fd, 4096, SIZE_MAX / 2, -EINVAL);
    pair_close(&p);
    close(fd);
}

/* Touching a huge page that is not there raises SIGBUS: not from a peer. */
static void test_refused_hugetlb(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, ZPIPE_TRUST_PEER);
    int fd = memfd_new(2 * MiB, MFD_ALLOW_SEALING | MFD_HUGETLB,
                       F_SEAL_SHRINK);
    static uint8_t mem[4096];
    Pair p;
    int id;

    if (fd < 0) {
        g_test_skip("no memfd with huge pages here");
        return;
    }
    pair_open(&p, &tx, NULL);
    /* no page of it is there: nobody may touch it */
    id = zpipe_region_add(p.tx, fd, 0, mem, 2 * MiB);
    pair_settle(&p);
    if (id >= 0) {
        g_assert_cmpint(stats_of(p.rx).refused_regions, ==, 1);
    } else {
        g_assert_cmpint(id, ==, -EPERM);
    }
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 0);
    pass(&p, 1000, 1, 0);
    pair_close(&p);
    close(fd);
}

/* -------------------------------------------------- what the peer can do */

/* Everything by which a descriptor might be written. */
static int try_to_write(int fd, size_t size)
{
    g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", fd);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int again;

    if (p != MAP_FAILED) {
        return 1;
    }
    if (write(fd, "x", 1) >= 0 || pwrite(fd, "x", 1, 0) >= 0) {
        return 2;
    }
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, size) ==
        0) {
        return 3;
    }
    if (ftruncate(fd, 0) == 0) {
        return 4;
    }
    p = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        return 5;
    }
    if (mprotect(p, size, PROT_READ | PROT_WRITE) == 0) {
        return 6;
    }
    munmap(p, size);
    /* anew, with more rights: this is why the file's mode is taken away */
    again = open(self, O_RDWR);
    if (again >= 0) {
        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
        close(again);
        return p == MAP_FAILED ? 0 : 7;
    }
    return 0;
}

/* As another user, in a process of its own. */
static int try_as_nobody(int fd, size_t size)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        if (setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
            setresuid(NOBODY, NOBODY, NOBODY) < 0) {
            _exit(100);
        }
        _exit(fchmod(fd, 0777) == 0 ? 8 : try_to_write(fd, size));
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

typedef struct Spy {
    struct zpipe *zp;
    RawPeer *raw;
} Spy;

static void spy_open(Spy *spy)
{
    int sv[2];

    socket_pair(sv);
    spy->zp = zpipe_new(NULL);
    spy->raw = raw_new(sv[1], true);
    g_assert_cmpint(zpipe_attach(spy->zp, sv[0], false), ==, 0);
    raw_connect(spy->raw, spy->zp);
}

static void spy_close(Spy *spy)
{
    raw_free(spy->raw);
    zpipe_free(spy->zp);
}

static int spy_region(Spy *spy)
{
    int64_t end = now_ms() + HANG_MS;

    for (;;) {
        reap_all(spy->zp);
        g_assert_true(raw_turn(spy->raw, NULL));
        for (int i = 0; i < ZPIPE_REGIONS_MAX; i++) {
            if (spy->raw->region_fd[i] >= 0) {
                return i;
            }
        }
        g_assert_cmpint(now_ms(), <, end);
    }
}

static void test_region_read_only(void)
{
    Shared s;
    Spy spy;
    int id;

    if (getuid() != 0) {
        g_test_skip("cannot become another user");
        return;
    }
    spy_open(&spy);
    shared_open(&s, spy.zp, 64 * KiB);
    id = spy_region(&spy);
    g_assert_cmpint(spy.raw->region[id].flags & ZP_REGION_WRITE, ==, 0);
    g_assert_cmpint(try_as_nobody(spy.raw->region_fd[id], 64 * KiB), ==, 0);
    /* with the descriptor alone, whoever it is */
    g_assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                       spy.raw->region_fd[id], 0) == MAP_FAILED);
    spy_close(&spy);
    shared_close(&s);
}

/* The kernel keeps everybody from writing it, the owner and root as well. */
static void test_region_sealed(void)
{
    g_autofree char *self = NULL;
    Shared s;
    Spy spy;
    int id, fd, again;

    spy_open(&spy);
    shared_open(&s, spy.zp, 64 * KiB);
    strcpy((char *)s.mem, "guest");     /* ours can still be written */
    id = spy_region(&spy);
    fd = spy.raw->region_fd[id];
    self = g_strdup_printf("/proc/self/fd/%d", fd);
    g_assert_cmpint(fchmod(fd, 0600), ==, 0);
    again = open(self, O_RDWR);
    g_assert_cmpint(again, >=, 0);
    g_assert_cmpint(try_to_write(again, 64 * KiB), ==, 0);
    g_assert_cmpint(fallocate(again, FALLOC_FL_PUNCH_HOLE |
                              FALLOC_FL_KEEP_SIZE, 0, 4096), <, 0);
    g_assert_cmpstr((char *)s.mem, ==, "guest");
    close(again);
    spy_close(&spy);
    shared_close(&s);
}

/*
 * A file without that seal, and a peer that could open it for writing: this
 * process itself.  It gets nothing of it, and all that is written.
 */
static void test_region_withheld(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, 0);
    uint8_t *in = g_malloc0(LEN);
    Req *w, *r = req_new(in, LEN);
    Shared s;
    Pair p;

    pair_open(&p, &tx, NULL);
    shared_open_how(&s, p.tx, LEN, false);
    p.fds++;
    pair_settle(&p);
    g_assert_cmpint(info_of(p.tx).withheld_regions, ==, 1);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 0);
    g_assert_cmpint(info_of(p.tx).peer_uid, ==, getuid());
    pat_fill(s.mem, LEN, 1, 0);
    w = req_new(s.mem, LEN);
    r->r.min = LEN;
    submit_write(p.tx, w);
    submit_read(p.rx, r);
    pair_wait(&p, r);
    pair_wait(&p, w);
    pat_check(in, LEN, 1, 0);
    g_assert_cmpint(stats_of(p.tx).tx[ZPIPE_COPY].bytes, ==, LEN);
    g_assert_cmpint(stats_of(p.tx).fallback[ZPIPE_WHY_UNTRUSTED], >, 0);
    zpipe_region_del(p.tx, s.id);
    g_assert_cmpint(info_of(p.tx).withheld_regions, ==, 0);
    pass(&p, 1000, 2, 0);
    shared_close(&s);
    p.fds--;
    pair_close(&p);
    req_free(w);
    req_free(r);
    g_free(in);
}

static void test_region_trusted(void)
{
    struct zpipe_config tx = config_of(ZPIPE_MAP, ZPIPE_TRUST_PEER);
    Shared s;
    Pair p;

    pair_open(&p, &tx, NULL);
    shared_open_how(&s, p.tx, LEN, false);
    p.fds++;
    pair_settle(&p);
    g_assert_cmpint(info_of(p.tx).withheld_regions, ==, 0);
    g_assert_cmpint(stats_of(p.rx).peer_regions, ==, 1);
    shared_close(&s);
    p.fds--;
    pair_close(&p);
}

#define SOMEBODY 12345

/* The client: another user.  Exits with how many regions it was given. */
static void somebody_main(const char *path)
{
    struct zpipe *zp = NULL;
    uint8_t byte;

    if (setgid(SOMEBODY) == 0 && setuid(SOMEBODY) == 0) {
        zp = zpipe_new(NULL);
    }
    if (!zp || zpipe_connect(zp, path) ||
        zpipe_read_full(zp, &byte, 1) != 1) {
        _exit(99);
    }
    _exit(stats_of(zp).peer_regions);
}

/* That user has no right to open the file: it may look. */
static void test_region_other_user(void)
{
    char *path = path_new();
    g_autofree char *dir = g_path_get_dirname(path);
    struct zpipe *zp = zpipe_new(NULL);
    int listener, sock, status;
    Shared s;
    pid_t pid;

    if (getuid() != 0) {
        g_test_skip("cannot become another user");
        zpipe_free(zp);
        path_free(path);
        return;
    }
    shared_open_how(&s, zp, 64 * KiB, false);
    listener = zpipe_listen(path);
    g_assert_cmpint(listener, >=, 0);
    g_assert_cmpint(chmod(dir, 0711) | chmod(path, 0777), ==, 0);
    pid = fork();
    if (pid == 0) {
        somebody_main(path);
    }
    while ((sock = zpipe_accept(listener)) == -EAGAIN) {
        g_usleep(1000);
    }
    g_assert_cmpint(zpipe_attach(zp, sock, true), ==, 0);
    g_assert_cmpint(zpipe_wait_connected(zp, HANG_MS), ==, 0);
    g_assert_cmpint(info_of(zp).peer_uid, ==, SOMEBODY);
    g_assert_cmpint(info_of(zp).withheld_regions, ==, 0);
    g_assert_cmpint(zpipe_write_all(zp, "x", 1), ==, 0);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    close(listener);
    shared_close(&s);
    zpipe_free(zp);
    path_free(path);
}

/* Memory that the library allocates is the one that a peer may write. */
static void test_buffer_writable(void)
{
    Spy spy;
    uint8_t *buf;
    void *p;
    int id;

    spy_open(&spy);
    buf = zpipe_buffer_new(spy.zp, 5000);
    g_assert_nonnull(buf);
    id = spy_region(&spy);
    g_assert_cmpint(spy.raw->region[id].flags & ZP_REGION_WRITE, !=, 0);
    g_assert_cmpint(spy.raw->region[id].size, ==, 8192);
    p = map_new(spy.raw->region_fd[id], 8192);
    munmap(p, 8192);
    /* but not made smaller */
    g_assert_cmpint(ftruncate(spy.raw->region_fd[id], 0), <, 0);
    spy_close(&spy);
}

/* Nobody but its owner writes an arena, root neither. */
static void test_arena_read_only(void)
{
    g_autofree char *self = NULL;
    Spy spy;
    size_t size;
    int fd, again;

    spy_open(&spy);
    fd = spy.raw->peer_arena_fd;
    self = g_strdup_printf("/proc/self/fd/%d", fd);
    size = spy.raw->peer.size;
    if (getuid() == 0) {
        g_assert_cmpint(try_as_nobody(fd, size), ==, 0);
    }
    g_assert_true(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                  == MAP_FAILED);
    again = open(self, O_RDWR);
    if (again >= 0) {
        g_assert_true(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
                           again, 0) == MAP_FAILED);
        g_assert_cmpint(pwrite(again, "x", 1, 0), <, 0);
        g_assert_cmpint(ftruncate(again, 0), <, 0);
        close(again);
    }
    spy_close(&spy);
}

static unsigned long mapped_kib(void)
{
    g_autofree char *text = NULL;
    const char *line;

    g_assert_true(g_file_get_contents("/proc/self/status", &text, NULL, NULL));
    line = strstr(text, "VmSize:");
    g_assert_nonnull(line);
    return strtoul(line + strlen("VmSize:"), NULL, 10);
}

#define SURPLUS \
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"

/* Change how many huge pages there may be on demand; who is root may. */
static bool change_surplus(int by)
{
    g_autofree char *old = NULL, *new = NULL;
    int fd = open(SURPLUS, O_RDWR | O_CLOEXEC);
    bool good = false;

    if (fd >= 0 && g_file_get_contents(SURPLUS, &old, NULL, NULL)) {
        new = g_strdup_printf("%ld", strtol(old, NULL, 10) + by);
        good = write(fd, new, strlen(new)) > 0;
    }
    if (fd >= 0) {
        close(fd);
    }
    return good;
}

static bool has_page(int fd)
{
    void *page = mmap(NULL, 2 * MiB, PROT_READ, MAP_SHARED, fd, 0);

    if (page != MAP_FAILED) {
        munmap(page, 2 * MiB);
    }
    return page != MAP_FAILED;
}

/* Less than a huge page is one: when it is taken back all of it goes. */
static void test_part_of_huge_page(void)
{
    struct zpipe_config config = config_of(ZPIPE_AUTO, ZPIPE_ALLOW_HUGETLB);
    int fds = fd_count(), sv[2];
    int fd = memfd_new(2 * MiB, MFD_ALLOW_SEALING | MFD_HUGETLB,
                       F_SEAL_SHRINK);
    struct zp_msg del = {
        .magic = ZP_MAGIC, .type = ZP_MSG_REGION_DEL, .region.id = 1
    };
    struct zpipe *zp = zpipe_new(&config);
    unsigned long before, after;
    bool changed = false;
    RawPeer *raw;

    if (fd >= 0 && !has_page(fd)) {
        changed = change_surplus(1);
        if (!has_page(fd)) {
            close(fd);
            fd = -1;
        }
    }
    socket_pair(sv);
    raw = raw_new(sv[1], true);
    g_assert_cmpint(zpipe_attach(zp, sv[0], false), ==, 0);
    raw_connect(raw, zp);
    before = mapped_kib();
    for (int i = 0; i < 64 && fd >= 0; i++) {
        raw_region(raw, 1, fd, 0, 4096, 0);
        reap_all(zp);
        if (stats_of(zp).peer_regions) {
            raw_send(raw, &del, NULL, 0);
            reap_all(zp);
            g_assert_cmpint(stats_of(zp).peer_regions, ==, 0);
        } else {
            close(fd);
            fd = -1;
        }
        while (raw_turn(raw, NULL) && poll(&(struct pollfd) {
                   raw->sock, POLLIN }, 1, 0) > 0) {
            /* the answers */
        }
    }
    after = mapped_kib();
    if (changed) {
        change_surplus(-1);
    }
    if (fd < 0) {
        g_test_skip("no huge pages (vm.nr_hugepages, or be root)");
    } else {
        g_assert_cmpuint(after, <, before + 64 * 2048);
        close(fd);
    }
    zpipe_free(zp);
    raw_free(raw);
    fd_check(fds);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/region/del-shown", test_del_shown);
    g_test_add_func("/region/view-outlives", test_view_outlives);
    g_test_add_func("/region/reuse", test_reuse);
    g_test_add_func("/region/max", test_max);
    g_test_add_func("/region/before-and-after", test_before_and_after);
    g_test_add_func("/region/edges", test_edges);
    g_test_add_func("/region/refused/files", test_refused_files);
    g_test_add_func("/region/refused/ranges", test_refused_ranges);
    g_test_add_func("/region/refused/hugetlb", test_refused_hugetlb);
    g_test_add_func("/region/part-of-huge-page", test_part_of_huge_page);
    g_test_add_func("/region/read-only", test_region_read_only);
    g_test_add_func("/region/sealed", test_region_sealed);
    g_test_add_func("/region/withheld", test_region_withheld);
    g_test_add_func("/region/trusted", test_region_trusted);
    g_test_add_func("/region/other-user", test_region_other_user);
    g_test_add_func("/region/buffer-writable", test_buffer_writable);
    g_test_add_func("/region/arena-read-only", test_arena_read_only);
    return g_test_run();
}
