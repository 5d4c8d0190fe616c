/* The server of the benchmark: echoes TCP, answers and counts UDP. One thread. */
#ifndef HOTPLANE_SERVER_H
#define HOTPLANE_SERVER_H

#include "common.h"
#include "protocol.h"

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    EVENTS = 256,
    MOST_PORTS = 8192,
    RECEIVE_BUFFER = 8 << 20,
};

enum kind { LISTENER, CONNECTION, STREAM, DATAGRAMS };

struct server_socket {
    enum kind kind;
    int fd;
    unsigned long long counted, overflowed;
};

static void watch(int poll, struct server_socket *sock) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = sock};

    if (epoll_ctl(poll, EPOLL_CTL_ADD, sock->fd, &event))
        fail("epoll_ctl");
}

static void listen_on(int poll, int family, int kind, int port) {
    struct server_socket *sock = calloc(1, sizeof(*sock));
    struct sockaddr_storage address;
    socklen_t length;
    int one = 1, size = RECEIVE_BUFFER;

    if (!sock || !parse_address(family == AF_INET ? "0.0.0.0" : "::", port, &address, &length))
        fail("listen");
    sock->fd = socket(family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (sock->fd < 0 && family == AF_INET6) {
        free(sock); /* a kernel without IPv6 */
        return;
    }
    sock->kind = kind == SOCK_STREAM ? LISTENER : DATAGRAMS;
    setsockopt(sock->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (family == AF_INET6)
        setsockopt(sock->fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (kind == SOCK_DGRAM) {
        setsockopt(sock->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
        setsockopt(sock->fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof(one));
    }
    if (bind(sock->fd, (struct sockaddr *)&address, length))
        fail("bind");
    if (kind == SOCK_STREAM) /* what is accepted inherits it */
        setsockopt(sock->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (kind == SOCK_STREAM && listen(sock->fd, 4096))
        fail("listen");
    watch(poll, sock);
}

static void answer_port(int fd) {
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);

    if (!getsockname(fd, (struct sockaddr *)&address, &length)) /* the port is at the same place in both families */
        send(fd, &((struct sockaddr_in *)&address)->sin_port, 2, MSG_NOSIGNAL);
}

/* Answer what has come; 0 = the connection is closed and `sock` is gone. */
static int echo(struct server_socket *sock) {
    char buffer[4096];
    ssize_t length = recv(sock->fd, buffer, sizeof(buffer), 0);

    if (length > 0 && buffer[0] == SINK) {
        sock->kind = STREAM;
        sock->counted = (unsigned long long)length;
        return 1;
    }
    if (length > 0 && buffer[0] == WHERE) {
        answer_port(sock->fd);
        return 1;
    }
    if (length > 0 && send(sock->fd, buffer, (size_t)length, MSG_NOSIGNAL) == length && buffer[0] != ONCE)
        return 1;
    if (length < 0 && errno == EAGAIN)
        return 1;
    close(sock->fd);
    free(sock);
    return 0;
}

/* Accept one connection; for the next one the listener is ready again. What a client sends at once is mostly there by
 * now: then a connection of one request is over before it was ever watched. */
static void accept_one(int poll, int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct server_socket *sock;

    if (fd < 0)
        return;
    sock = calloc(1, sizeof(*sock));
    if (!sock)
        fail("calloc");
    sock->kind = CONNECTION;
    sock->fd = fd;
    if (echo(sock))
        watch(poll, sock);
}

static void sink(struct server_socket *sock) {
    static char buffer[STREAM_BYTES];
    char answer[32];
    ssize_t length = recv(sock->fd, buffer, sizeof(buffer), 0);

    if (length > 0)
        sock->counted += (unsigned long long)length;
    if (length > 0 || (length < 0 && errno == EAGAIN))
        return;
    if (length == 0) {
        length = snprintf(answer, sizeof(answer), "%llu", sock->counted);
        send(sock->fd, answer, (size_t)length, MSG_NOSIGNAL);
    }
    close(sock->fd);
    free(sock);
}

/* The kernel's count of datagrams that found the socket's buffer full: they came through all the same. */
static void note_overflow(struct server_socket *sock, struct msghdr *message) {
    struct cmsghdr *control;

    for (control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SO_RXQ_OVFL) {
            uint32_t dropped;

            memcpy(&dropped, CMSG_DATA(control), sizeof(dropped));
            sock->overflowed = dropped;
        }
    }
}

static void answer(struct server_socket *sock, struct msghdr *message) {
    char buffer[ANSWER_BYTES] = {0};
    char first = *(char *)message->msg_iov->iov_base;
    size_t length = sizeof(buffer);

    if (first == FLOOD) {
        sock->counted++;
        return;
    }
    if (first == ECHO)
        length = 1;
    if (first == COUNT)
        length = (size_t)snprintf(buffer, sizeof(buffer), "%llu", sock->counted + sock->overflowed);
    sendto(sock->fd, buffer, length, 0, message->msg_name, message->msg_namelen);
}

static void receive(struct server_socket *sock) {
    static char payload[BATCH][FLOOD_BYTES], control[BATCH][64];
    static struct sockaddr_storage sources[BATCH];
    struct mmsghdr messages[BATCH];
    struct iovec data[BATCH];
    int number, count;

    do {
        for (number = 0; number < BATCH; number++) {
            data[number] = (struct iovec){payload[number], FLOOD_BYTES};
            messages[number].msg_hdr = (struct msghdr){
                .msg_name = &sources[number],
                .msg_namelen = sizeof(sources[number]),
                .msg_iov = &data[number],
                .msg_iovlen = 1,
                .msg_control = control[number],
                .msg_controllen = sizeof(control[number]),
            };
        }
        count = recvmmsg(sock->fd, messages, BATCH, MSG_DONTWAIT, NULL);
        for (number = 0; number < count; number++) {
            note_overflow(sock, &messages[number].msg_hdr);
            answer(sock, &messages[number].msg_hdr);
        }
    } while (count == BATCH);
}

/* Serve `count` ports from `port` on, both families, TCP and UDP unless only_tcp; says "ready" once it does. For ever.
 */
static void serve(int port, int count, int only_tcp) {
    struct epoll_event events[EVENTS];
    struct rlimit files;
    int poll = epoll_create1(EPOLL_CLOEXEC), number;

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (number = 0; number < count; number++) {
        listen_on(poll, AF_INET, SOCK_STREAM, port + number);
        listen_on(poll, AF_INET6, SOCK_STREAM, port + number);
        if (only_tcp)
            continue;
        listen_on(poll, AF_INET, SOCK_DGRAM, port + number);
        listen_on(poll, AF_INET6, SOCK_DGRAM, port + number);
    }
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(poll, events, EVENTS, -1);

        for (number = 0; number < ready; number++) {
            struct server_socket *sock = events[number].data.ptr;

            if (sock->kind == LISTENER)
                accept_one(poll, sock->fd);
            else if (sock->kind == CONNECTION)
                echo(sock);
            else if (sock->kind == STREAM)
                sink(sock);
            else
                receive(sock);
        }
    }
}

#endif
