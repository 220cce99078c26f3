/* Counts the file operations of a process within one folder, and lets the k-th of them end in a signal or on a full disk.

   Preloaded (LD_PRELOAD), so that it sees what Rust and C++ write as well. A write that a signal interrupts has written
   its first half. Linux alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char watched[PATH_MAX];
static long count, chosen;
static int sent;   /* the signal, or 0 for a disk that is full from the chosen operation on */

void watch_operations(const char *folder, long operation, int signal_number) {
    strncpy(watched, folder, PATH_MAX - 1);
    count = 0, chosen = operation, sent = signal_number;
}

long operations(void) { return count; }

static int is_within(const char *path) {
    size_t n = strlen(watched);
    return n && !strncmp(path, watched, n) && (path[n] == '/' || path[n] == 0);
}

static int fd_within(int fd) {
    char link[64], path[PATH_MAX];
    if (!*watched) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    return n > 0 && (path[n] = 0, is_within(path));
}

static int path_within(int folder, const char *path) {
    return path[0] == '/' || folder == AT_FDCWD ? is_within(path) : fd_within(folder);
}

enum { PASSES, TEARS, FILLS };

/* Count an operation, and say what becomes of it: the caller tears a write before it calls `strike`. */
static int counted(int within, int grows) {
    if (!within) return PASSES;
    count++;
    if (!chosen || count < chosen) return PASSES;
    if (!sent) return grows ? (errno = ENOSPC, FILLS) : PASSES;
    return count == chosen ? TEARS : PASSES;
}

static void strike(void) { kill(getpid(), sent); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPERATION(name, within, grows, ...)                      \
    {                                                            \
        int fate = counted(within, grows);                       \
        if (fate == FILLS) return -1;                            \
        if (fate == TEARS) strike();                             \
        return REAL(name)(__VA_ARGS__);                          \
    }

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY; }

#define MODE va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);
int open(const char *path, int flags, ...) { MODE OPERATION(open, writes(flags) && is_within(path), 0, path, flags, mode) }
int open64(const char *path, int flags, ...) { MODE OPERATION(open64, writes(flags) && is_within(path), 0, path, flags, mode) }
int openat(int at, const char *path, int flags, ...) { MODE OPERATION(openat, writes(flags) && path_within(at, path), 0, at, path, flags, mode) }
int openat64(int at, const char *path, int flags, ...) { MODE OPERATION(openat64, writes(flags) && path_within(at, path), 0, at, path, flags, mode) }

ssize_t write(int fd, const void *data, size_t n) {
    int fate = counted(fd_within(fd), 1);
    if (fate == FILLS) return -1;
    if (fate == TEARS) {
        size_t half = n / 2;
        ssize_t done = half ? REAL(write)(fd, data, half) : 0;
        strike();
        ssize_t more = done < 0 ? -1 : REAL(write)(fd, (const char *)data + done, n - done);
        return more < 0 ? more : done + more;
    }
    return REAL(write)(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *data, int n) OPERATION(writev, fd_within(fd), 1, fd, data, n)
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) OPERATION(pwrite, fd_within(fd), 1, fd, data, n, at)
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) OPERATION(pwrite64, fd_within(fd), 1, fd, data, n, at)
ssize_t sendfile(int to, int from, off_t *at, size_t n);
ssize_t sendfile(int to, int from, off_t *at, size_t n) OPERATION(sendfile, fd_within(to), 1, to, from, at, n)
ssize_t sendfile64(int to, int from, off64_t *at, size_t n);
ssize_t sendfile64(int to, int from, off64_t *at, size_t n) OPERATION(sendfile64, fd_within(to), 1, to, from, at, n)
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t n, unsigned flags)
    OPERATION(copy_file_range, fd_within(to), 1, from, at, to, there, n, flags)
FILE *fopen(const char *path, const char *mode) {
    if (counted(*mode != 'r' && is_within(path), 0) == TEARS) strike();
    return REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    if (counted(*mode != 'r' && is_within(path), 0) == TEARS) strike();
    return REAL(fopen64)(path, mode);
}
int ftruncate(int fd, off_t n) OPERATION(ftruncate, fd_within(fd), n > 0, fd, n)
int ftruncate64(int fd, off64_t n) OPERATION(ftruncate64, fd_within(fd), n > 0, fd, n)
int truncate(const char *path, off_t n) OPERATION(truncate, is_within(path), 0, path, n)
int truncate64(const char *path, off64_t n) OPERATION(truncate64, is_within(path), 0, path, n)
int fsync(int fd) OPERATION(fsync, fd_within(fd), 0, fd)
int fdatasync(int fd) OPERATION(fdatasync, fd_within(fd), 0, fd)
int rename(const char *from, const char *to) OPERATION(rename, is_within(to), 0, from, to)
int renameat(int from, const char *name, int to, const char *other) OPERATION(renameat, path_within(to, other), 0, from, name, to, other)
int mkdir(const char *path, mode_t mode) OPERATION(mkdir, is_within(path), 1, path, mode)
int mkdirat(int at, const char *path, mode_t mode) OPERATION(mkdirat, path_within(at, path), 1, at, path, mode)
int unlink(const char *path) OPERATION(unlink, is_within(path), 0, path)
int unlinkat(int at, const char *path, int flags) OPERATION(unlinkat, path_within(at, path), 0, at, path, flags)
int rmdir(const char *path) OPERATION(rmdir, is_within(path), 0, path)
int link(const char *from, const char *to) OPERATION(link, is_within(to), 1, from, to)
int linkat(int from, const char *name, int to, const char *other, int flags) OPERATION(linkat, path_within(to, other), 1, from, name, to, other, flags)
int symlink(const char *from, const char *to) OPERATION(symlink, is_within(to), 1, from, to)
int chmod(const char *path, mode_t mode) OPERATION(chmod, is_within(path), 0, path, mode)
