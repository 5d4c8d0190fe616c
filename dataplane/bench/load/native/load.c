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
 * is an operation that did not come to its end within PATIENCE_SECONDS. However short SECONDS are, one operation is
 * begun and ended in them, or after them.
 *
 * Without RATE the next operation begins when the last has ended (closed loop). With it operations are due RATE times
 * a second, whatever the last ones took, and a latency begins when its operation was due, not when its turn came (open
 * loop: a stall delays all that were due in it). Then the answer has `counts` too, the buckets of an HdrHistogram of
 * two digits from 1 ns on, [index, count] each where count is not 0; and `behind`, how many were not begun in time. */
#define _GNU_SOURCE
#define PROGRAM "load"
#include "common.h"
#include "protocol.h"
#include "server.h"

#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <unistd.h>

enum {
    MOST_SAMPLES = 4000000,
    PATIENCE_SECONDS = 3, /* a SYN that was lost is sent again after one (RFC 6298) */
    HALF_BITS = 7,        /* of an HdrHistogram with two digits: 256 sub-buckets, of which the upper half is used */
    MOST_BUCKETS = (64 - HALF_BITS) << HALF_BITS,
    SPIN_NANOSECONDS = 60000,
    STREAM_PATIENCE_SECONDS = 10,
};

static uint32_t samples[MOST_SAMPLES];
static uint32_t counts[MOST_BUCKETS];

struct target {
    struct sockaddr_storage address, source;
    socklen_t length;
    int has_source;
};

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
    for (number = 0; number < due && count < MOST_SAMPLES && (rate > 0 || !number || end < deadline); number++) {
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
    if (before >= 0) {
        do {
            int done = sendmmsg(fd, messages, BATCH, 0);

            if (done > 0)
                sent += (size_t)done;
            end = now();
        } while (end < deadline);
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
    if (sent >= 0) {
        do {
            sent = send(fd, payload, sizeof(payload), MSG_NOSIGNAL);
            end = now();
        } while (sent >= 0 && end < deadline);
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
