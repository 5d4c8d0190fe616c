// Makes calls of the C library fail in a process that is started with this library in LD_PRELOAD. HOTPLANE_FAULTS names
// a file of two rows of 64-bit integers, in the machine's byte order, shared with the test: how many calls of each kind
// there were, and which of them fail (n: the n-th alone; -1: all; 0: none).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { FORK, WRITE, SEND, OPEN, MAP, BPF, KINDS };

static volatile int64_t *shared;  // KINDS counts, then KINDS numbers of calls that fail

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("HOTPLANE_FAULTS");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) {
        return;
    }
    void *at = (void *)syscall(SYS_mmap, NULL, 2 * KINDS * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    shared = at == MAP_FAILED ? NULL : at;
}

static int fails(int kind, int error) {
    if (!shared) {
        return 0;
    }
    int64_t count = __atomic_add_fetch(&shared[kind], 1, __ATOMIC_SEQ_CST);
    int64_t chosen = shared[KINDS + kind];
    if (chosen != -1 && chosen != count) {
        return 0;
    }
    errno = error;
    return 1;
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

pid_t fork(void) {
    return fails(FORK, EAGAIN) ? -1 : NEXT(fork)();
}

pid_t vfork(void) {  // a wrapper cannot return twice from its own frame, and fork does for it
    return fork();
}

static int is_file(int fd) {
    struct stat info;
    return fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
}

ssize_t write(int fd, const void *data, size_t size) {
    if (is_file(fd) && fails(WRITE, ENOSPC)) {
        return -1;
    }
    return NEXT(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (is_file(fd) && fails(WRITE, ENOSPC)) {
        return -1;
    }
    return NEXT(pwrite64)(fd, data, size, at);
}

static int is_netlink(int fd) {
    int domain = 0;
    socklen_t size = sizeof(domain);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_NETLINK;
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    if (is_netlink(fd) && fails(SEND, ENOBUFS)) {
        return -1;
    }
    return NEXT(send)(fd, data, size, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    if (is_netlink(fd) && fails(SEND, ENOBUFS)) {
        return -1;
    }
    return NEXT(sendto)(fd, data, size, flags, to, length);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (is_netlink(fd) && fails(SEND, ENOBUFS)) {
        return -1;
    }
    return NEXT(sendmsg)(fd, message, flags);
}

int socket(int domain, int kind, int protocol) {
    return fails(OPEN, EMFILE) ? -1 : NEXT(socket)(domain, kind, protocol);
}

int pipe2(int ends[2], int flags) {
    return fails(OPEN, EMFILE) ? -1 : NEXT(pipe2)(ends, flags);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return fails(OPEN, EMFILE) ? -1 : NEXT(open64)(path, flags, mode);
}

void *mmap64(void *where, size_t size, int protection, int flags, int fd, off64_t at) {
    if (flags & MAP_ANONYMOUS && fails(MAP, ENOMEM)) {
        return MAP_FAILED;
    }
    return NEXT(mmap64)(where, size, protection, flags, fd, at);
}

long syscall(long number, ...) {
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_bpf && fails(BPF, ENOMEM)) {
        return -1;
    }
    return NEXT(syscall)(number, a, b, c, d, e, f);
}
