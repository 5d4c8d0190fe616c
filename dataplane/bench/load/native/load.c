/* Load generator and server of the benchmark. One thread each, no allocation while measuring.
 *
 *   load serve PORT COUNT [tcp]   serve COUNT ports from PORT on, TCP and UDP unless tcp, both families; says "ready"
 *   load run                obey lines "OPERATION ADDRESS PORT SECONDS SOURCE [RATE]" (SOURCE "-": whatever the kernel
 *                           takes), answer each with one line of JSON
 *
 * Operations: connect (a TCP connection each time, ended by a reset so that no port is used up), crr (a TCP connection
 * each time, a byte there and back, closed in order, by the server first), rr (a byte there and back on one TCP
 * connection), urr (a byte there and back, one UDP socket), dns (a UDP socket each time, 40 bytes there, 120 back), udp
 * (64-byte datagrams as fast as they go; counted where they arrive), stream (one TCP connection, as much as goes;
 * operations are bytes, counted where they arrive, and seconds last until all have). Answer: operations, failures,
 * seconds, then latencies in nanoseconds (p50, p90, p99, p999, p9999, max), or for udp how many were `sent`. A failure
 * is an operation that did not come to its end within a second.
 *
 * Without RATE the next operation begins when the last has ended (closed loop). With it operations are due RATE times
 * a second, whatever the last ones took, and a latency begins when its operation was due, not when its turn came (open
 * loop: a stall delays all that were due in it). Then the answer has `counts` too, the buckets of an HdrHistogram of
 * two digits from 1 ns on, [index, count] each where count is not 0; and `behind`, how many were not begun in time. */
#define _GNU_SOURCE
#define PROGRAM "load"
#include "common.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    MOST_SAMPLES = 4000000,
    PATIENCE_SECONDS = 3, /* a SYN that was lost is sent again after one (RFC 6298) */
    QUERY_BYTES = 40,
    ANSWER_BYTES = 120,
    FLOOD_BYTES = 64,
    BATCH = 32,
    EVENTS = 256,
    MOST_PORTS = 8192,
    HALF_BITS = 7, /* of an HdrHistogram with two digits: 256 sub-buckets, of which the upper half is used */
    MOST_BUCKETS = (64 - HALF_BITS) << HALF_BITS,
    SPIN_NANOSECONDS = 60000,
    RECEIVE_BUFFER = 8 << 20,
    STREAM_BYTES = 128 << 10, /* at once, as iperf3 does */
    STREAM_PATIENCE_SECONDS = 10,
};

/* First byte of a datagram to the server. */
#define QUERY 'Q' /* answer me */
#define FLOOD 'F' /* count me */
#define COUNT 'C' /* how many were counted? (answer: the number as text) */
#define ECHO 'E'  /* answer me with a byte */

/* First byte that comes on a connection. */
#define ONCE '1'  /* send it back and close */
#define MORE '+'  /* send it back */
#define WHERE 'P' /* which port is this? (answer: two bytes, network order) */
#define SINK 'S'  /* count it and all that follows; at its end answer with the number of bytes as text */

static uint32_t samples[MOST_SAMPLES];
static uint32_t counts[MOST_BUCKETS];

struct target {
    struct sockaddr_storage address, source;
    socklen_t length;
    int has_source;
};

/* ---------------------------------------------------------------- client */

static int open_socket(const struct target *target, int kind) {
    struct timeval patience = {PATIENCE_SECONDS, 0};
    int one = 1;
    int fd = socket(target->address.ss_family, kind | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (kind == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (target->has_source) {
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
        if (bind(fd, (const struct sockaddr *)&target->source, target->length))
            fail("bind to the source address");
    }
    return fd;
}

/* Close a connection by a reset: nothing waits for its port afterwards. */
static void reset(int fd) {
    struct linger now = {1, 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(fd);
}

static int open_connected(const struct target *target, int kind) {
    int fd = open_socket(target, kind);

    if (connect(fd, (const struct sockaddr *)&target->address, target->length)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* One operation: 1 done, 0 failed; *begin and *end are when it began and ended. `fd` is the warm connection. */
static int operate_connect(const struct target *target, int fd, uint64_t *begin, uint64_t *end) {
    int done;

    fd = open_socket(target, SOCK_STREAM);
    *begin = now();
    done = connect(fd, (const struct sockaddr *)&target->address, target->length) == 0;
    *end = now();
    reset(fd);
    return done;
}

static int operate_crr(const struct target *target, int fd, uint64_t *begin, uint64_t *end) {
    char byte = ONCE;
    int done;

    *begin = now();
    fd = open_connected(target, SOCK_STREAM);
    done = fd >= 0 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1 && recv(fd, &byte, 1, 0) == 1 && recv(fd, &byte, 1, 0) == 0;
    *end = now();
    if (done)
        close(fd);
    else if (fd >= 0)
        reset(fd);
    return done;
}

static int operate_rr(const struct target *target, int fd, uint64_t *begin, uint64_t *end) {
    char byte = MORE;
    int done;

    (void)target;
    *begin = now();
    done = send(fd, &byte, 1, MSG_NOSIGNAL) == 1 && recv(fd, &byte, 1, 0) == 1;
    *end = now();
    return done;
}

static int operate_urr(const struct target *target, int fd, uint64_t *begin, uint64_t *end) {
    char byte = ECHO;
    int done;

    (void)target;
    *begin = now();
    done = send(fd, &byte, 1, 0) == 1 && recv(fd, &byte, 1, 0) == 1;
    *end = now();
    return done;
}

static int operate_dns(const struct target *target, int fd, uint64_t *begin, uint64_t *end) {
    char buffer[ANSWER_BYTES] = {QUERY};
    int done;

    *begin = now();
    fd = open_connected(target, SOCK_DGRAM);
    done = fd >= 0 && send(fd, buffer, QUERY_BYTES, 0) == QUERY_BYTES &&
           recv(fd, buffer, sizeof(buffer), 0) == ANSWER_BYTES;
    *end = now();
    if (fd >= 0)
        close(fd);
    return done;
}

typedef int (*operation)(const struct target *, int, uint64_t *, uint64_t *);

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

    return (a > b) - (a < b);
}

static uint32_t percentile(size_t count, double share) {
    size_t at = (size_t)(share * (double)count);

    return count ? samples[at < count ? at : count - 1] : 0;
}

static unsigned bucket(uint64_t value) {
    unsigned shift = 63u - (unsigned)__builtin_clzll(value | ((1u << (HALF_BITS + 1)) - 1)) - HALF_BITS;

    return (shift << HALF_BITS) + (unsigned)(value >> shift);
}

/* Sleep, and at the very end spin, until a moment; whether it was still to come. */
static int wait_for(uint64_t moment) {
    uint64_t early = moment - SPIN_NANOSECONDS;
    struct timespec time = {(time_t)(early / 1000000000u), (long)(early % 1000000000u)};

    if (now() > moment)
        return 0;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
    while (now() < moment)
        ;
    return 1;
}

static void print_counts(size_t behind) {
    const char *separator = "";
    unsigned index;

    printf(",\"behind\":%zu,\"counts\":[", behind);
    for (index = 0; index < MOST_BUCKETS; index++) {
        if (counts[index]) {
            printf("%s[%u,%u]", separator, index, counts[index]);
            separator = ",";
        }
    }
    printf("]");
}

/* rate: operations a second, each from when it was due; 0: one after the other. */
static void measure(operation operate, const struct target *target, int fd, double seconds, double rate) {
    uint64_t start = now(), deadline = start + (uint64_t)(seconds * 1e9), begin = 0, end = start;
    size_t count = 0, failures = 0, behind = 0, number, due = rate > 0 ? (size_t)(rate * seconds) : MOST_SAMPLES;

    memset(counts, 0, sizeof(counts));
    for (number = 0; number < due && count < MOST_SAMPLES && (rate > 0 || end < deadline); number++) {
        uint64_t moment = start + (uint64_t)((double)number * 1e9 / rate);

        if (rate > 0 && !wait_for(moment))
            behind++;
        if (operate(target, fd, &begin, &end)) {
            uint64_t took = end - (rate > 0 ? moment : begin);

            samples[count++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
            counts[bucket(took)]++;
        } else {
            failures++;
            if (end > deadline + PATIENCE_SECONDS * 1000000000ull)
                break; /* nobody answers: no need to fail for as many seconds as operations were due */
        }
    }
    end = now();
    qsort(samples, count, sizeof(*samples), ascending);
    printf("{\"operations\":%zu,\"failures\":%zu,\"seconds\":%.9f,\"p50\":%u,\"p90\":%u,\"p99\":%u,\"p999\":%u,"
           "\"p9999\":%u,\"max\":%u",
           count, failures, (double)(end - start) / 1e9, percentile(count, 0.5), percentile(count, 0.9),
           percentile(count, 0.99), percentile(count, 0.999), percentile(count, 0.9999), percentile(count, 1.0));
    if (rate > 0)
        print_counts(behind);
    printf("}\n");
}

/* What the server has counted, asked through the very same socket; -1 when it does not answer. */
static long long counted(int fd) {
    char buffer[64];
    int attempt;

    for (attempt = 0; attempt < 3; attempt++) {
        ssize_t length;

        buffer[0] = COUNT;
        if (send(fd, buffer, 1, 0) != 1)
            continue;
        length = recv(fd, buffer, sizeof(buffer) - 1, 0);
        if (length > 0) {
            buffer[length] = 0;
            return atoll(buffer);
        }
    }
    return -1;
}

static void flood(const struct target *target, double seconds) {
    char payload[FLOOD_BYTES] = {FLOOD};
    struct iovec data = {payload, sizeof(payload)};
    struct mmsghdr messages[BATCH];
    int fd = open_connected(target, SOCK_DGRAM), number;
    long long before = fd < 0 ? -1 : counted(fd), after;
    uint64_t start, deadline, end;
    size_t sent = 0;

    memset(messages, 0, sizeof(messages));
    for (number = 0; number < BATCH; number++) {
        messages[number].msg_hdr.msg_iov = &data;
        messages[number].msg_hdr.msg_iovlen = 1;
    }
    start = end = now();
    deadline = start + (uint64_t)(seconds * 1e9);
    while (before >= 0 && end < deadline) {
        int done = sendmmsg(fd, messages, BATCH, 0);

        if (done > 0)
            sent += (size_t)done;
        end = now();
    }
    after = before < 0 ? -1 : counted(fd);
    if (fd >= 0)
        close(fd);
    printf("{\"operations\":%lld,\"failures\":%d,\"seconds\":%.9f,\"sent\":%zu}\n", after < 0 ? 0 : after - before,
           after < 0, (double)(end - start) / 1e9, sent);
}

/* Bytes that the server has got, as it says once the stream has ended; -1 when it does not. */
static long long streamed(int fd) {
    struct timeval patience = {STREAM_PATIENCE_SECONDS, 0};
    char buffer[64];
    ssize_t length;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    shutdown(fd, SHUT_WR);
    length = recv(fd, buffer, sizeof(buffer) - 1, MSG_WAITALL);
    if (length <= 0)
        return -1;
    buffer[length] = 0;
    return atoll(buffer);
}

static void stream(const struct target *target, double seconds) {
    static char payload[STREAM_BYTES];
    int fd = open_connected(target, SOCK_STREAM);
    uint64_t start = now(), deadline = start + (uint64_t)(seconds * 1e9), end = start;
    ssize_t sent = fd < 0 ? -1 : 0;
    long long arrived = -1;

    memset(payload, SINK, sizeof(payload));
    while (sent >= 0 && end < deadline) {
        sent = send(fd, payload, sizeof(payload), MSG_NOSIGNAL);
        end = now();
    }
    if (sent >= 0)
        arrived = streamed(fd);
    end = now();
    if (fd >= 0)
        close(fd);
    printf("{\"operations\":%lld,\"failures\":%d,\"seconds\":%.9f}\n", arrived < 0 ? 0 : arrived, arrived < 0,
           (double)(end - start) / 1e9);
}

static void measure_warm(operation operate, const struct target *target, int kind, double seconds, double rate) {
    int fd = open_connected(target, kind);

    if (fd < 0) {
        printf("{\"operations\":0,\"failures\":1,\"seconds\":%.9f}\n", seconds);
        return;
    }
    measure(operate, target, fd, seconds, rate);
    reset(fd);
}

static void obey(const char *name, const struct target *target, double seconds, double rate) {
    if (!strcmp(name, "connect"))
        measure(operate_connect, target, -1, seconds, rate);
    else if (!strcmp(name, "crr"))
        measure(operate_crr, target, -1, seconds, rate);
    else if (!strcmp(name, "dns"))
        measure(operate_dns, target, -1, seconds, rate);
    else if (!strcmp(name, "rr"))
        measure_warm(operate_rr, target, SOCK_STREAM, seconds, rate);
    else if (!strcmp(name, "urr"))
        measure_warm(operate_urr, target, SOCK_DGRAM, seconds, rate);
    else if (!strcmp(name, "udp"))
        flood(target, seconds);
    else if (!strcmp(name, "stream"))
        stream(target, seconds);
    else
        printf("{\"error\":\"no operation %s\"}\n", name);
}

static int run(void) {
    char line[512], name[32], address[64], source[64];
    int port;
    double seconds, rate;

    prctl(PR_SET_TIMERSLACK, 1);
    while (fgets(line, sizeof(line), stdin)) {
        struct target target;
        socklen_t source_length;

        rate = 0;
        if (sscanf(line, "%31s %63s %d %lf %63s %lf", name, address, &port, &seconds, source, &rate) < 5 || rate < 0 ||
            !parse_address(address, port, &target.address, &target.length)) {
            printf("{\"error\":\"not a request\"}\n");
        } else {
            target.has_source = strcmp(source, "-") != 0;
            if (target.has_source && !parse_address(source, 0, &target.source, &source_length))
                printf("{\"error\":\"not a source address\"}\n");
            else
                obey(name, &target, seconds, rate);
        }
        fflush(stdout);
    }
    return 0;
}

/* ---------------------------------------------------------------- server */

enum kind { LISTENER, CONNECTION, STREAM, DATAGRAMS };

struct door {
    enum kind kind;
    int fd;
    unsigned long long counted, overflowed;
};

static void watch(int poll, struct door *door) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = door};

    if (epoll_ctl(poll, EPOLL_CTL_ADD, door->fd, &event))
        fail("epoll_ctl");
}

static void listen_on(int poll, int family, int kind, int port) {
    struct door *door = calloc(1, sizeof(*door));
    struct sockaddr_storage address;
    socklen_t length;
    int one = 1, size = RECEIVE_BUFFER;

    if (!door || !parse_address(family == AF_INET ? "0.0.0.0" : "::", port, &address, &length))
        fail("listen");
    door->fd = socket(family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (door->fd < 0 && family == AF_INET6) {
        free(door); /* a kernel without IPv6 */
        return;
    }
    door->kind = kind == SOCK_STREAM ? LISTENER : DATAGRAMS;
    setsockopt(door->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (family == AF_INET6)
        setsockopt(door->fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (kind == SOCK_DGRAM) {
        setsockopt(door->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
        setsockopt(door->fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof(one));
    }
    if (bind(door->fd, (struct sockaddr *)&address, length))
        fail("bind");
    if (kind == SOCK_STREAM) /* what is accepted inherits it */
        setsockopt(door->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (kind == SOCK_STREAM && listen(door->fd, 4096))
        fail("listen");
    watch(poll, door);
}

static void answer_port(int fd) {
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);

    if (!getsockname(fd, (struct sockaddr *)&address, &length)) /* the port is at the same place in both families */
        send(fd, &((struct sockaddr_in *)&address)->sin_port, 2, MSG_NOSIGNAL);
}

/* Answer what has come; 0 = the connection is closed and `door` is gone. */
static int echo(struct door *door) {
    char buffer[4096];
    ssize_t length = recv(door->fd, buffer, sizeof(buffer), 0);

    if (length > 0 && buffer[0] == SINK) {
        door->kind = STREAM;
        door->counted = (unsigned long long)length;
        return 1;
    }
    if (length > 0 && buffer[0] == WHERE) {
        answer_port(door->fd);
        return 1;
    }
    if (length > 0 && send(door->fd, buffer, (size_t)length, MSG_NOSIGNAL) == length && buffer[0] != ONCE)
        return 1;
    if (length < 0 && errno == EAGAIN)
        return 1;
    close(door->fd);
    free(door);
    return 0;
}

/* Accept one connection; for the next one the listener is ready again. What a client sends at once is mostly there by
 * now: then a connection of one request is over before it was ever watched. */
static void accept_one(int poll, int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct door *door;

    if (fd < 0)
        return;
    door = calloc(1, sizeof(*door));
    if (!door)
        fail("calloc");
    door->kind = CONNECTION;
    door->fd = fd;
    if (echo(door))
        watch(poll, door);
}

static void sink(struct door *door) {
    static char buffer[STREAM_BYTES];
    char answer[32];
    ssize_t length = recv(door->fd, buffer, sizeof(buffer), 0);

    if (length > 0)
        door->counted += (unsigned long long)length;
    if (length > 0 || (length < 0 && errno == EAGAIN))
        return;
    if (length == 0) {
        length = snprintf(answer, sizeof(answer), "%llu", door->counted);
        send(door->fd, answer, (size_t)length, MSG_NOSIGNAL);
    }
    close(door->fd);
    free(door);
}

/* The kernel's count of datagrams that found the socket's buffer full: they came through all the same. */
static void note_overflow(struct door *door, struct msghdr *message) {
    struct cmsghdr *control;

    for (control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
        if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SO_RXQ_OVFL) {
            uint32_t dropped;

            memcpy(&dropped, CMSG_DATA(control), sizeof(dropped));
            door->overflowed = dropped;
        }
    }
}

static void answer(struct door *door, struct msghdr *message) {
    char buffer[ANSWER_BYTES] = {0};
    char first = *(char *)message->msg_iov->iov_base;
    size_t length = sizeof(buffer);

    if (first == FLOOD) {
        door->counted++;
        return;
    }
    if (first == ECHO)
        length = 1;
    if (first == COUNT)
        length = (size_t)snprintf(buffer, sizeof(buffer), "%llu", door->counted + door->overflowed);
    sendto(door->fd, buffer, length, 0, message->msg_name, message->msg_namelen);
}

static void receive(struct door *door) {
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
        count = recvmmsg(door->fd, messages, BATCH, MSG_DONTWAIT, NULL);
        for (number = 0; number < count; number++) {
            note_overflow(door, &messages[number].msg_hdr);
            answer(door, &messages[number].msg_hdr);
        }
    } while (count == BATCH);
}

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
            struct door *door = events[number].data.ptr;

            if (door->kind == LISTENER)
                accept_one(poll, door->fd);
            else if (door->kind == CONNECTION)
                echo(door);
            else if (door->kind == STREAM)
                sink(door);
            else
                receive(door);
        }
    }
}

int main(int count, char **arguments) {
    int only_tcp = count == 5 && !strcmp(arguments[4], "tcp");

    if (count == 2 && !strcmp(arguments[1], "run"))
        return run();
    if ((count == 4 || only_tcp) && !strcmp(arguments[1], "serve") && atoi(arguments[3]) > 0 &&
        atoi(arguments[3]) <= MOST_PORTS)
        serve(atoi(arguments[2]), atoi(arguments[3]), only_tcp);
    fprintf(stderr, "usage: load serve PORT COUNT [tcp] | load run\n");
    return 2;
}
