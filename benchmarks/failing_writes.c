/* Writes that fail with an error of the kernel's, for faults.py: loaded into every process by LD_PRELOAD.
 *
 * The file that FAILING_WRITES names holds, while writes are to fail, "ERRNO once|always PATTERN". A write,
 * an opening for writing, a sync or a rename of a file whose path matches the pattern (as fnmatch has it, * is
 * any text) fails then. The first that does leaves a file of that name with ".hit" behind it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* Whether a file of that path is to fail; sets errno. Calls nothing that is replaced here. */
static int fails(const char *path) {
    static char control[PATH_MAX];
    char text[PATH_MAX + 32], mode[16], pattern[PATH_MAX];
    int before = errno, number, file;
    ssize_t size;
    if (!control[0] && getenv("FAILING_WRITES")) strncpy(control, getenv("FAILING_WRITES"), PATH_MAX - 1);
    if (!control[0] || !path || path[0] != '/') return 0;
    file = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC);
    if (file < 0) return errno = before, 0;
    size = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    errno = before;
    if (size <= 0) return 0;
    text[size] = 0;
    if (sscanf(text, "%d %15s %4095s", &number, mode, pattern) != 3 || fnmatch(pattern, path, 0)) return 0;
    snprintf(text, sizeof text, "%s.hit", control);
    file = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (file >= 0) {
        syscall(SYS_write, file, path, strlen(path));
        syscall(SYS_write, file, "\n", 1);
        syscall(SYS_close, file);
    }
    if (!strcmp(mode, "once")) syscall(SYS_unlinkat, AT_FDCWD, control, 0);
    return errno = number, 1;
}

static int fd_fails(int fd) {
    char link[64], path[PATH_MAX];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = before;
    if (size <= 0) return 0;
    path[size] = 0;
    return fails(path);
}

static int path_fails(int folder, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    ssize_t size;
    if (!path || path[0] == '/') return fails(path);
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    if ((size = readlink(link, whole, PATH_MAX)) <= 0) return 0;
    snprintf(whole + size, sizeof whole - size, "/%s", path);
    return fails(whole);
}

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT))
#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return WRITES(flags) && path_fails(AT_FDCWD, path) ? -1 : next(path, flags, mode); \
    }
#define OPENING_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        NEXT(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return WRITES(flags) && path_fails(folder, path) ? -1 : next(folder, path, flags, mode); \
    }
OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    NEXT(write);
    return fd_fails(fd) ? -1 : next(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    NEXT(writev);
    return fd_fails(fd) ? -1 : next(fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    NEXT(pwrite);
    return fd_fails(fd) ? -1 : next(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    NEXT(pwrite64);
    return fd_fails(fd) ? -1 : next(fd, data, size, at);
}

int fsync(int fd) {
    NEXT(fsync);
    return fd_fails(fd) ? -1 : next(fd);
}

int fdatasync(int fd) {
    NEXT(fdatasync);
    return fd_fails(fd) ? -1 : next(fd);
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    return path_fails(AT_FDCWD, to) ? -1 : next(from, to);
}

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *where, size_t size, unsigned flags) {
    NEXT(copy_file_range);
    return fd_fails(to) ? -1 : next(from, at, to, where, size, flags);
}

ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    static ssize_t (*next)(int, int, off_t *, size_t);
    if (!next) next = (ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile");
    return fd_fails(to) ? -1 : next(to, from, at, size);
}
