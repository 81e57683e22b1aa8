/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * stream make|check BYTES SEED
 *
 * make writes a stream of BYTES bytes in which each byte depends on its place
 * and on SEED, in pieces of random size; check reads such a stream in pieces of
 * random size and compares it.  A byte that is lost, doubled, moved or changed
 * shows, with its place.  Both print the number of bytes and the stream's
 * checksum to standard error; check's exit code says whether all is well.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE_MAX = 128 << 10, ROOM = PIECE_MAX / 8 + 2 };

static uint64_t seed, state, checksum;

static uint64_t word_at(uint64_t n)
{
    uint64_t x = (n + seed) * 0x9e3779b97f4a7c15u;

    return x ^ x >> 29;
}

static uint32_t random_number(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 32;
}

/* Small ones, large ones, and sizes around those of pages and segments. */
static size_t piece_size(void)
{
    switch (random_number() % 4) {
    case 0:
        return 1 + random_number() % 256;
    case 1:
        return 4096 * (1 + random_number() % 16) - 8 + random_number() % 17;
    default:
        return 1 + random_number() % PIECE_MAX;
    }
}

/* Words that cover @len bytes from @pos on; returns where these bytes are. */
static const uint8_t *expected(uint64_t *words, uint64_t pos, size_t len)
{
    uint64_t first = pos / 8, last = (pos + len + 7) / 8;

    for (uint64_t n = first; n < last; n++) {
        words[n - first] = word_at(n);
    }
    return (uint8_t *)words + pos % 8;
}

/* Every whole word of the stream counts, whatever the pieces are. */
static void add_to_checksum(uint64_t pos, size_t len)
{
    for (uint64_t n = (pos + 7) / 8; n * 8 < pos + len; n++) {
        checksum = (checksum << 1 | checksum >> 63) + word_at(n);
    }
}

static int make(uint64_t bytes)
{
    static uint64_t words[ROOM];

    for (uint64_t pos = 0; pos < bytes;) {
        size_t len = piece_size();
        const uint8_t *from;

        len = len < bytes - pos ? len : bytes - pos;
        from = expected(words, pos, len);
        add_to_checksum(pos, len);
        for (size_t done = 0; done < len;) {
            ssize_t put = write(STDOUT_FILENO, from + done, len - done);

            if (put < 0 && (errno == EINTR || errno == EAGAIN)) {
                continue;
            }
            if (put <= 0) {
                fprintf(stderr, "stopped at %llu: %s\n",
                        (unsigned long long)(pos + done), strerror(errno));
                return 1;
            }
            done += put;
        }
        pos += len;
    }
    return 0;
}

static int wrong(uint64_t pos, const uint8_t *got, const uint8_t *want,
                 size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (got[i] != want[i]) {
            fprintf(stderr, "wrong at %llu: %02x, not %02x\n",
                    (unsigned long long)(pos + i), got[i], want[i]);
            break;
        }
    }
    return 1;
}

static int check(uint64_t bytes)
{
    static uint64_t words[ROOM];
    static uint8_t buf[PIECE_MAX + 4096];

    for (uint64_t pos = 0; pos < bytes;) {
        size_t want = piece_size();
        ssize_t got;

        want = want < bytes - pos ? want : bytes - pos;
        got = read(STDIN_FILENO, buf, want);
        if (got < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (got <= 0) {
            fprintf(stderr, "short at %llu: %s\n", (unsigned long long)pos,
                    got ? strerror(errno) : "end");
            return 1;
        }
        if (memcmp(buf, expected(words, pos, got), got)) {
            return wrong(pos, buf, expected(words, pos, got), got);
        }
        add_to_checksum(pos, got);
        pos += got;
    }
    return 0;
}

int main(int argc, char **argv)
{
    uint64_t bytes;
    int code;

    if (argc != 4 || (strcmp(argv[1], "make") && strcmp(argv[1], "check"))) {
        fprintf(stderr, "usage: stream make|check BYTES SEED\n");
        return 2;
    }
    bytes = strtoull(argv[2], NULL, 10);
    seed = strtoull(argv[3], NULL, 10);
    /* the pieces of the two ends are cut differently */
    state = seed * 2 + (argv[1][0] == 'm') + 0x123456789;
    code = argv[1][0] == 'm' ? make(bytes) : check(bytes);
    if (code == 0) {
        fprintf(stderr, "%llu %016llx\n", (unsigned long long)bytes,
                (unsigned long long)checksum);
    }
    return code;
}
