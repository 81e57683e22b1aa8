/*
 * zpipe: the socket
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The handshake: the client says hello, the server answers with its own hello
 * and "ready", the client with "ready".  After that the socket carries regions,
 * and its end is the end of the connection.
 */

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "zpipe-int.h"

#define FDS_MAX 2
/* For the lock below, held by others for some system calls at most. */
#define LOCK_TRIES 200

/* --------------------------------------------------------- the addresses */

static int unix_address(struct sockaddr_un *addr, const char *path)
{
    size_t len = strlen(path);

    *addr = (struct sockaddr_un) { .sun_family = AF_UNIX };
    if (!len || len > ZPIPE_PATH_MAX) {
        return len ? -ENAMETOOLONG : -EINVAL;
    }
    memcpy(addr->sun_path, path, len);
    return 0;
}

static int unix_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    return fd < 0 ? -errno : fd;
}

int zpipe_dial(const char *path)
{
    struct sockaddr_un addr;
    int ret = unix_address(&addr, path);
    int fd;

    if (ret < 0) {
        return ret;
    }
    fd = unix_socket();
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    return fd;
}

/*
 * Lock the directory that @path is in: whoever makes a socket there, or finds
 * that one is left over, is alone until it listens.  Without that a second
 * server could take the first one's new socket for the left-over.  Returns a
 * descriptor to be closed, or a negative errno value.
 */
static int lock_directory(const char *path)
{
    struct timespec pause = { .tv_nsec = 1000000 };
    const char *slash = strrchr(path, '/');
    char dir[ZPIPE_PATH_MAX + 1] = ".";
    int fd;

    if (slash) {
        snprintf(dir, sizeof(dir), "%.*s", (int)MAX(slash - path, 1), path);
    }
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
        int err = errno;

        if ((err != EWOULDBLOCK && err != EINTR) || i == LOCK_TRIES) {
            close(fd);
            return err == EWOULDBLOCK ? -EBUSY : -err;
        }
        nanosleep(&pause, NULL);
    }
    return fd;
}

/* A socket file that nobody listens on is left over: it may be replaced. */
static int remove_stale(const char *path)
{
    struct stat st;
    int fd;

    if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode)) {
        return -EADDRINUSE;
    }
    fd = zpipe_dial(path);
    if (fd >= 0) {
        close(fd);
        return -EADDRINUSE;
    }
    if (fd != -ECONNREFUSED) {
        return -EADDRINUSE;
    }
    return unlink(path) < 0 ? -errno : 0;
}

static int listen_locked(const char *path, const struct sockaddr_un *at)
{
    const struct sockaddr *addr = (const struct sockaddr *)at;
    int fd = unix_socket(), ret;

    if (fd < 0) {
        return fd;
    }
    ret = bind(fd, addr, sizeof(*at)) < 0 ? -errno : 0;
    if (ret == -EADDRINUSE) {
        ret = remove_stale(path);
        if (!ret && bind(fd, addr, sizeof(*at)) < 0) {
            ret = -errno;
        }
    }
    if (!ret && listen(fd, 4) < 0) {
        ret = -errno;
    }
    if (ret) {
        close(fd);
        return ret;
    }
    return fd;
}

int zpipe_listen(const char *path)
{
    struct sockaddr_un addr;
    int ret = unix_address(&addr, path);
    int lock;

    if (ret < 0) {
        return ret;
    }
    lock = lock_directory(path);
    if (lock < 0) {
        return lock;
    }
    ret = listen_locked(path, &addr);
    close(lock);
    return ret;
}

int zpipe_accept(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

/* ---------------------------------------------------------- the messages */

static bool send_message(int sock, struct zp_msg *msg, const int *fds, int nfds)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
    } control = {};
    struct iovec iov = { msg, sizeof(*msg) };
    struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
    ssize_t ret;

    msg->magic = ZP_MAGIC;
    if (nfds) {
        struct cmsghdr *cmsg;

        hdr.msg_control = control.space;
        hdr.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&hdr);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, nfds * sizeof(int));
    }
    do {
        ret = sendmsg(sock, &hdr, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (ret < 0 && errno == EINTR);
    return ret == sizeof(*msg);
}

static bool receive_one(struct zpipe *zp);

bool link_send(struct zpipe *zp, struct zp_msg *msg, const int *fds, int nfds)
{
    if (zp->sock < 0) {
        return false;
    }
    if (!send_message(zp->sock, msg, fds, nfds)) {
        int err = errno;

        if (err != EAGAIN && zp->link == LINK_HELLO) {
            receive_one(zp);    /* a refusal, perhaps: that is the reason */
        }
        link_fail(zp, err == EAGAIN ? -ETIMEDOUT : -ECONNRESET,
                  err == EAGAIN ? "the peer does not read its messages"
                                : "cannot send to the peer: %s",
                  strerror(err));
        return false;
    }
    return true;
}

void zpipe_refuse(int sock, const char *why)
{
    struct zp_msg msg = { .type = ZP_MSG_REFUSE };

    snprintf(msg.text, sizeof(msg.text), "%s", why);
    send_message(sock, &msg, NULL, 0);
    close_socket(sock);
}

static void close_all(int *fds, int n)
{
    for (int i = 0; i < n; i++) {
        close_received(fds[i]);
    }
}

/*
 * Receive one message with its descriptors.  1; 0: none is there; or a negative
 * errno value, and no descriptor is left open.
 */
static int receive(struct zpipe *zp, struct zp_msg *msg, int *fds, int *nfds)
{
    union received_control control;
    int all[ZP_FDS_RECEIVED];
    struct iovec iov = { msg, sizeof(*msg) };
    struct msghdr hdr = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = control.space, .msg_controllen = sizeof(control.space),
    };
    ssize_t ret;
    int n;

    *nfds = 0;
    if (closing_too_many()) {
        return -EMFILE;
    }
    /*
     * A peer that closes before it has read all leaves an error, which comes
     * once and before its last words.
     */
    for (int errors = 0; ; errors++) {
        ret = recvmsg(zp->sock, &hdr, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (ret >= 0 || (errno != EINTR && errno != ECONNRESET) ||
            errors == 2) {
            break;
        }
    }
    if (ret < 0) {
        return errno == EAGAIN ? 0 : -ECONNRESET;
    }
    n = received_fds(&hdr, all);
    if (!ret && !n) {
        return -ECONNRESET;
    }
    if (ret != sizeof(*msg) || (hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
        msg->magic != ZP_MAGIC || n > FDS_MAX) {
        close_all(all, n);
        return -EPROTO;
    }
    memcpy(fds, all, n * sizeof(int));
    *nfds = n;
    return 1;
}

/* ------------------------------------------------------- the descriptors */

static int watch(struct zpipe *zp, int fd, uint32_t events, uint32_t what)
{
    struct epoll_event event = { .events = events, .data.u32 = what };

    return epoll_ctl(zp->epfd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static void set_timer(struct zpipe *zp, uint64_t ns)
{
    struct itimerspec when = {
        .it_value = { ns / 1000000000, ns % 1000000000 },
    };

    timerfd_settime(zp->timer, 0, &when, NULL);
}

/*
 * The timer has three uses: it ends a handshake, or a wait for a posted read,
 * and makes the descriptor readable at once.  That comes first, and the others
 * then, from timer_expired().
 */
void wake_self(struct zpipe *zp)
{
    zp->waking = true;
    set_timer(zp, 1);
}

void wake_self_later(struct zpipe *zp, uint64_t ns)
{
    if (!zp->waking) {
        set_timer(zp, ns);
    }
}

static void timer_expired(struct zpipe *zp)
{
    uint64_t count;

    if (read(zp->timer, &count, sizeof(count)) < 0) {
        return;
    }
    zp->waking = false;
    if (zp->link == LINK_HELLO || zp->link == LINK_READY) {
        uint64_t now = now_ns();

        if (now >= zp->handshake_end) {
            link_fail(zp, -ETIMEDOUT, "the peer did not finish the handshake");
        } else {
            set_timer(zp, zp->handshake_end - now);
        }
    } else if (zp->tx.reads_by) {
        /* it may have come for another reason; the past is 1 ns from now */
        uint64_t now = now_ns();

        set_timer(zp, zp->tx.reads_by > now ? zp->tx.reads_by - now : 0);
    }
}

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/*
 * The same of one that a peer can send to.  A child, or the peer, may have it
 * as well: so closing it does not end that it is watched.
 */
static void drop_socket(struct zpipe *zp, int *sock)
{
    if (*sock >= 0) {
        epoll_ctl(zp->epfd, EPOLL_CTL_DEL, *sock, NULL);
        close_socket(*sock);
        *sock = -1;
    }
}

static void drop_bells(struct zpipe *zp)
{
    drop_socket(zp, &zp->bell);
    if (zp->rope >= 0) {
        close_rope(zp->rope);
        zp->rope = -1;
    }
}

/* --------------------------------------------------------- the handshake */

/* Only a socket can be told not to wait. */
static int check_rope(int fd)
{
    int domain, type;
    socklen_t len = sizeof(int);

    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) ||
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) ||
           domain != AF_UNIX || type != SOCK_STREAM ? -EPROTO : 0;
}

static void send_hello(struct zpipe *zp)
{
    struct zp_msg msg = { .type = ZP_MSG_HELLO };
    struct zp_hello *hello = &msg.hello;
    int fds[FDS_MAX] = { zp->arena_fd, zp->bell_rope };

    hello->version = ZP_VERSION;
    if (zp->cfg.flags & ZPIPE_CMA_EXPOSE_READ) {
        hello->offers |= ZP_OFFER_CMA_READ;
    }
    if (zp->cfg.flags & ZPIPE_CMA_EXPOSE_WRITE) {
        hello->offers |= ZP_OFFER_CMA_WRITE;
    }
    if (zp->session_known) {
        memcpy(hello->session, zp->session, sizeof(hello->session));
    }
    hello->tx_offset = zp->tx.acked;
    hello->rx_offset = zp->rx.taken;
    hello->entries = zp->own.entries;
    hello->copy_bytes = zp->own.copy_bytes;
    if (hello->offers) {
        hello->cookie_addr = (uintptr_t)zp->cookie;
        memcpy(hello->cookie, zp->cookie, sizeof(hello->cookie));
    }
    link_send(zp, &msg, fds, FDS_MAX);
    close_fd(&zp->bell_rope);
}

static void send_ready(struct zpipe *zp)
{
    struct zp_msg msg = { .type = ZP_MSG_READY };

    msg.ability.can = zp->cma_read ? ZP_CAN_CMA_READ : 0;
    msg.ability.error = zp->cma_error;
    link_send(zp, &msg, NULL, 0);
}

/* Send the peer away. */
static void refuse(struct zpipe *zp, int err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void refuse(struct zpipe *zp, int err, const char *fmt, ...)
{
    struct zp_msg msg = { .type = ZP_MSG_REFUSE };
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(msg.text, sizeof(msg.text), fmt, ap);
    va_end(ap);
    send_message(zp->sock, &msg, NULL, 0);
    link_fail(zp, err, "%s", msg.text);
}

/* May the stream that we write go on at @pos? */
static bool can_resume_at(const struct zpipe *zp, uint64_t pos)
{
    return pos - zp->tx.acked <= zp->tx.high - zp->tx.acked;
}

/*
 * Find where both streams go on.  The client names the session; the server
 * answers with the same if it has it, else with a new one.
 */
static bool agree(struct zpipe *zp, const struct zp_hello *hello)
{
    bool same = zp->session_known &&
                !memcmp(hello->session, zp->session, sizeof(zp->session));
    uint64_t tx_pos = zp->tx.acked, rx_pos = hello->tx_offset;

    if (same) {
        tx_pos = hello->rx_offset;
        rx_pos = zp->rx.taken;
        if (!can_resume_at(zp, tx_pos) || hello->tx_offset > rx_pos) {
            zp->session_known = false;      /* the next one is a new one */
            refuse(zp, -EPROTO, "the session has a gap: taken up to %llu, "
                   "sent from %llu to %llu", (unsigned long long)tx_pos,
                   (unsigned long long)zp->tx.acked,
                   (unsigned long long)zp->tx.high);
            return false;
        }
    } else if (!zp->server) {
        if (hello->rx_offset != tx_pos) {
            refuse(zp, -EPROTO, "the new session begins at %llu, not %llu",
                   (unsigned long long)hello->rx_offset,
                   (unsigned long long)tx_pos);
            return false;
        }
        memcpy(zp->session, hello->session, sizeof(zp->session));
    } else if (getrandom(zp->session, sizeof(zp->session), GRND_NONBLOCK) !=
               sizeof(zp->session)) {
        refuse(zp, -EAGAIN, "no random numbers yet");
        return false;
    }
    zp->session_known = true;
    zp->resumed = same;
    tx_start(zp, tx_pos);
    rx_start(zp, rx_pos);
    return true;
}

static void hello_received(struct zpipe *zp, const struct zp_hello *hello,
                           int *fds)
{
    int err;

    if (hello->version != ZP_VERSION) {
        refuse(zp, -EPROTONOSUPPORT, "protocol version %u is not known here, "
               "only %u", hello->version, ZP_VERSION);
        return;
    }
    if (hello->tx_offset > ZP_POS_MAX || hello->rx_offset > ZP_POS_MAX) {
        refuse(zp, -EPROTO, "a stream position is out of range");
        return;
    }
    err = arena_adopt(zp, fds[0], hello);
    if (err) {
        refuse(zp, err, "the arena was refused: %s", strerror(-err));
        return;
    }
    err = check_rope(fds[1]);
    if (err) {
        refuse(zp, err, "the bell was refused: %s", strerror(-err));
        return;
    }
    zp->rope = fds[1];
    fds[1] = -1;
    cma_prove(zp, hello);
    if (!agree(zp, hello)) {
        return;
    }
    zp->link = LINK_READY;
    if (zp->server) {
        send_hello(zp);
    }
    send_ready(zp);
}

static void ready_received(struct zpipe *zp, const struct zp_ability *ability)
{
    zp->peer_cma_read = ability->can & ZP_CAN_CMA_READ;
    zp->link = LINK_UP;
    zp->error = 0;
    zp->error_text[0] = 0;
    zp->stats.connects++;
    zp->stats.resumed += zp->resumed;
    close_fd(&zp->arena_fd);
    wake_self_later(zp, 0);     /* the time for the handshake is over */
    region_send_all(zp);
}

/* A text of the peer's, fit to be printed. */
static void clean_text(char *text)
{
    text[ZP_TEXT_MAX - 1] = 0;
    for (; *text; text++) {
        if (!isprint((unsigned char)*text)) {
            *text = '?';
        }
    }
}

static void ability_received(struct zpipe *zp, const struct zp_ability *ability)
{
    if (zp->peer_cma_read && !(ability->can & ZP_CAN_CMA_READ)) {
        zp->peer_cma_read = false;
        zp->cma_error = ability->error;
        zp->wait_end = patience_left(zp, ZP_PATIENCE_NS);
        tx_withdraw(zp);        /* and send it in another way */
        zp->wait_end = 0;
    }
}

static bool fds_good(const struct zp_msg *msg, int nfds)
{
    if (msg->type == ZP_MSG_HELLO) {
        /* of another version: that is the matter, and will be said */
        return nfds == FDS_MAX || msg->hello.version != ZP_VERSION;
    }
    return nfds == (msg->type == ZP_MSG_REGION_ADD);
}

static void handle(struct zpipe *zp, struct zp_msg *msg, int *fds)
{
    enum link_state link = zp->link;

    if (msg->type == ZP_MSG_REFUSE || msg->type == ZP_MSG_BYE) {
        clean_text(msg->text);
        link_fail(zp, msg->type == ZP_MSG_REFUSE ? -ECONNREFUSED : -ECONNRESET,
                  "the peer says: %s", msg->text);
    } else if (msg->type == ZP_MSG_HELLO && link == LINK_HELLO) {
        hello_received(zp, &msg->hello, fds);
    } else if (msg->type == ZP_MSG_READY && link == LINK_READY) {
        ready_received(zp, &msg->ability);
    } else if (msg->type == ZP_MSG_ABILITY && link == LINK_UP) {
        ability_received(zp, &msg->ability);
    } else if (msg->type >= ZP_MSG_REGION_ADD &&
               msg->type <= ZP_MSG_REGION_DEL && link == LINK_UP) {
        region_message(zp, msg, fds[0]);
    } else {
        link_fail(zp, -EPROTO, "unexpected message %u", msg->type);
    }
}

/* Returns whether there may be more. */
static bool receive_one(struct zpipe *zp)
{
    int fds[FDS_MAX] = { -1, -1 }, nfds, ret;
    struct zp_msg msg;

    ret = receive(zp, &msg, fds, &nfds);
    if (!ret) {
        return false;
    }
    if (ret == -ECONNRESET) {
        link_fail(zp, -ECONNRESET, "the peer has gone");
        return false;
    }
    if (ret == -EMFILE) {
        link_fail(zp, ret, "peers sent descriptors that cannot be closed");
        return false;
    }
    if (ret < 0 || !fds_good(&msg, nfds)) {
        if (ret > 0) {
            close_all(fds, nfds);
        }
        link_fail(zp, -EPROTO, "a message makes no sense");
        return false;
    }
    handle(zp, &msg, fds);
    for (int i = 0; i < nfds; i++) {
        if (fds[i] >= 0) {
            close_received(fds[i]);
        }
    }
    return zp->sock >= 0;
}

static void receive_some(struct zpipe *zp)
{
    for (int i = 0; i < ZP_MESSAGES_A_TURN && zp->sock >= 0; i++) {
        if (!receive_one(zp)) {
            return;
        }
    }
}

/*
 * The bell is edge-triggered: its bytes need not be taken out each time.  Not
 * without end: a peer can put bytes in as fast as we take them out.
 */
bool link_silence(struct zpipe *zp)
{
    if (!discard_received(zp->bell, 4)) {
        link_fail(zp, -EPROTO, "descriptors came with the bell");
        return false;
    }
    return true;
}

int link_poll(struct zpipe *zp, int timeout_ms)
{
    struct epoll_event events[4];
    int n = epoll_wait(zp->epfd, events, 4, timeout_ms);

    if (n < 0) {
        return -errno;
    }
    for (int i = 0; i < n; i++) {
        if (events[i].data.u32 == WATCH_SOCK) {
            receive_some(zp);
        } else if (events[i].data.u32 == WATCH_TIMER) {
            timer_expired(zp);
        }
        /* WATCH_BELL: to have been woken is all */
    }
    return n;
}

/* --------------------------------------------------------- begin and end */

static void peer_identity(struct zpipe *zp)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    zp->peer_pid = 0;
    zp->peer_uid = 0;           /* if it is not known: the most powerful */
    if (!getsockopt(zp->sock, SOL_SOCKET, SO_PEERCRED, &cred, &len)) {
        zp->peer_pid = cred.pid;
        zp->peer_uid = cred.uid;
    }
}

static int hang_bell(struct zpipe *zp)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                   ends) < 0) {
        return -errno;
    }
    zp->bell = ends[0];
    zp->bell_rope = ends[1];
    zp->rung = 0;
    return watch(zp, zp->bell, EPOLLIN | EPOLLET, WATCH_BELL);
}

static int prepare(struct zpipe *zp)
{
    int ret, type;
    socklen_t len = sizeof(type);

    if (getsockopt(zp->sock, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
        type != SOCK_SEQPACKET) {
        return -EPROTOTYPE;
    }
    if (getrandom(zp->cookie, sizeof(zp->cookie), GRND_NONBLOCK) !=
        sizeof(zp->cookie)) {
        return -EAGAIN;
    }
    ret = hang_bell(zp);
    if (!ret) {
        ret = watch(zp, zp->sock, EPOLLIN | EPOLLRDHUP, WATCH_SOCK);
    }
    return ret ? ret : arena_create(zp);
}

int zpipe_attach(struct zpipe *zp, int sock, bool server)
{
    int ret;

    if (zp->broken || (zp->link != LINK_NONE && zp->link != LINK_DRAIN)) {
        close_socket(sock);
        return zp->broken ? zp->broken : -EISCONN;
    }
    link_drop_peer(zp);
    zp->sock = sock;
    zp->server = server;
    ret = prepare(zp);
    if (ret) {
        drop_socket(zp, &zp->sock);
        link_drop_peer(zp);
        return ret;
    }
    peer_identity(zp);
    zp->epoch++;
    zp->resumed = zp->cma_lost = false;
    zp->news = 0;
    zp->kicked = 0;
    zp->link = LINK_HELLO;
    zp->handshake_end = now_ns() + zp->cfg.handshake_ms * 1000000ull;
    wake_self_later(zp, zp->cfg.handshake_ms * 1000000ull);
    if (!server) {
        send_hello(zp);
    }
    return zp->link == LINK_NONE ? zp->error : 0;
}

int zpipe_connect(struct zpipe *zp, const char *path)
{
    int sock = zpipe_dial(path);

    return sock < 0 ? sock : zpipe_attach(zp, sock, false);
}

void link_drop_peer(struct zpipe *zp)
{
    region_forget_peer(zp);
    map_put(zp->peer_map);
    map_put(zp->own_map);
    zp->peer_map = zp->own_map = NULL;
    zp->peer.ctl = zp->own.ctl = NULL;
    zp->touching = zp->asleep = zp->rx.demand = false;
    close_fd(&zp->arena_fd);
    close_fd(&zp->bell_rope);
    drop_bells(zp);
    zp->link = LINK_NONE;
}

/* Give requests that cannot go on their result. */
static void fail_requests(struct zpipe *zp)
{
    if (zp->cfg.flags & ZPIPE_PERSISTENT) {
        return;
    }
    zp->session_known = false;
    tx_fail_all(zp, zp->error);
    if (zp->link == LINK_NONE) {
        rx_fail_all(zp, zp->rx.end ? 0 : zp->error);
    }
}

/*
 * Requests go back to their owners, and the buffers with them.  A peer that is
 * still there may be in the middle of writing into one.
 */
static void stop_peer(struct zpipe *zp, bool gone)
{
    bool reads = rx_conceal(zp);

    tx_salvage(zp, reads, patience_left(zp, reads && !gone ?
                                            ZP_PATIENCE_NS :
                                            ZP_LAST_PATIENCE_NS));
}

void link_leave(struct zpipe *zp)
{
    bool shown;

    if (zp->link == LINK_UP) {
        shown = tx_conceal(zp);
        shown |= rx_conceal(zp);
        if (shown) {
            await_untouched(zp, patience_end(zp, ZP_PATIENCE_NS));
        }
    }
    link_drop_peer(zp);
}

static void end_link(struct zpipe *zp, bool readable)
{
    bool was_up = zp->link == LINK_UP;

    if (was_up) {
        stop_peer(zp, readable);
    }
    drop_socket(zp, &zp->sock);
    drop_bells(zp);
    cma_close(zp);
    zp->peer_cma_read = false;
    set_timer(zp, 0);
    if (was_up && readable) {
        touch_end(zp);
        zp->link = LINK_DRAIN;
    } else {
        link_drop_peer(zp);
    }
    fail_requests(zp);
    wake_self(zp);
}

void link_fail(struct zpipe *zp, int err, const char *fmt, ...)
{
    struct zp_msg msg = { .type = ZP_MSG_BYE };
    va_list ap;

    if (zp->link == LINK_NONE) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(zp->error_text, sizeof(zp->error_text), fmt, ap);
    va_end(ap);
    zp->error = err;
    if (zp->sock >= 0 && err != -ECONNRESET && err != -ECONNREFUSED) {
        snprintf(msg.text, sizeof(msg.text), "%.*s", (int)sizeof(msg.text) - 1,
                 zp->error_text);
        send_message(zp->sock, &msg, NULL, 0);
    }
    /* what a peer that keeps the rules left behind can still be read */
    end_link(zp, err == -ECONNRESET);
}

void link_drained(struct zpipe *zp)
{
    if (zp->link == LINK_DRAIN && !rx_more(zp)) {
        link_drop_peer(zp);
        fail_requests(zp);
    }
}

void zpipe_detach(struct zpipe *zp)
{
    zp->wait_end = patience_left(zp, ZP_PATIENCE_NS);
    if (zp->link == LINK_UP) {
        tx_withdraw(zp);
    }
    if (zp->link != LINK_NONE) {
        zp->error = -ECONNABORTED;
        snprintf(zp->error_text, sizeof(zp->error_text), "detached");
        end_link(zp, false);
    }
    zp->wait_end = 0;
}
