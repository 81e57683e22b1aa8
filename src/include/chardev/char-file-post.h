/*
 * Posted output of character device "file": a thread waits for the file
 *
 * Copyright (c) 2026 qemu-hotpath
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef CHARDEV_CHAR_FILE_POST_H
#define CHARDEV_CHAR_FILE_POST_H

/* What may wait for the thread; the thread has at most as much */
#define CHAR_FILE_POST_BYTES 4096

/**
 * typedef CharFilePost: output that is on its way to a file
 *
 * Writes do not wait for the file system.  They are in order; what the thread
 * has not written yet is neither migrated nor saved, like that in a pipe.
 */
typedef struct CharFilePost CharFilePost;

/**
 * char_file_post_new: have what is written to a descriptor written by a thread
 * @fd: a descriptor whose writes wait; duplicated
 *
 * Returns: to be freed with char_file_post_free(), or NULL with errno set.
 */
CharFilePost *char_file_post_new(int fd);

/**
 * char_file_post_open: the same, if the descriptor is a regular file's
 * @fd: a descriptor; duplicated
 * @path: its name, for errors
 * @errp: set if it is not
 *
 * Returns: to be freed with char_file_post_free(), or NULL with @errp set.
 */
CharFilePost *char_file_post_open(int fd, const char *path, Error **errp);

/**
 * char_file_post_free: wait for what was written, but not for long
 * @p: NULL, or what char_file_post_new() returned
 *
 * If the file system does not answer for a second, the thread is left to it.
 */
void char_file_post_free(CharFilePost *p);

/**
 * char_file_post_write: as ChardevClass.chr_write
 * @p: what char_file_post_new() returned
 * @buf: the bytes
 * @len: how many, more than 0
 *
 * Waits only if no thread is free.  An error of the file is that of a later
 * write.
 *
 * Context: any thread, one at a time.
 *
 * Returns: how many bytes were taken, or -1 with errno set: %EAGAIN if there
 * is no room.
 */
int char_file_post_write(CharFilePost *p, const uint8_t *buf, int len);

/**
 * char_file_post_watch: as ChardevClass.chr_add_watch
 * @p: what char_file_post_new() returned
 *
 * Returns: a source that is dispatched when there is room.
 */
GSource *char_file_post_watch(CharFilePost *p);

#endif
