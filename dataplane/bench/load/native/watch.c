/* Load generator for scenarios in which something happens, or many flows are open at once. One thread, which never
 * waits for one operation: what stalls is one connection, not the load. It obeys lines of standard input and answers
 * each with a line of JSON:
 *
 * watch ADDRESS PORT SOURCE RATE FLOWS FLOW_RATE
 *     Open FLOWS connections and say {"flows": how many there are}. Then, until a line "stop" comes, begin RATE
 *     connections a second, each ended by a reset, and send FLOW_RATE bytes a second on the open ones in turn, whatever
 *     happened to those before (open loop). Then wait for what is under way, PATIENCE_SECONDS at most, and answer.
 *
 * connects ADDRESS PORT SOURCE COUNT SECONDS
 *     COUNT connections under way at all times; when one ends the next begins (closed loop).
 *
 * exchanges ADDRESS PORT SOURCE COUNT SECONDS
 *     COUNT open connections, a byte there and back on each, again and again (closed loop).
 *     Both last SECONDS, and longer where nothing has ended by then: until something has, PATIENCE_SECONDS at most.
 *
 * hold ADDRESS PORT SOURCE COUNT
 *     Open COUNT connections more and ask each of all that are held for the port it is served by: {"ports": [...]}, 0
 *     for one that does not answer.
 *
 * drop ADDRESS PORT SOURCE 0
 *     End them.
 *
 * flood ADDRESS PORT SOURCE RATE
 *     Say {"flows": 0}; until "stop" send RATE TCP SYNs a second from made-up sources in 198.18.0.0/15 (RFC 2544).
 * IPv4.
 *
 * SOURCE "-": whatever the kernel takes. Answers: connects and exchanges are lists of [due, took]: due in microseconds
 * from the begin, took in nanoseconds from then until its end, or the negative errno of why it failed, -ETIMEDOUT where
 * it did not end in time; ended: how many flows were ended by somebody else; late: nanoseconds that this program itself
 * was late, at most; seconds. */
#define _GNU_SOURCE
#define PROGRAM "watch"
#include "common.h"
#include "protocol.h"

#include <fcntl.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    MOST = 1 << 19, /* operations of a kind in one request */
    MOST_FLOWS = 4096,
    PATIENCE_SECONDS = 3, /* a SYN that was lost is sent again after one (RFC 6298) */
    WAITING = 256,        /* bytes that a flow may have under way */
    EVENTS = 256,
    PRIORITY = 20, /* of real time: the instrument is not what is measured */
    SYN_BATCH = 64,
};

#define LOST (-ETIMEDOUT)
#define UNCOUNTED INT64_MIN /* still under way when a closed loop ended */

enum kind { STDIN, TIMER, CONNECT, FLOW };

struct operation {
    uint64_t due, begun;
    int64_t took;
    int fd; /* -1: over */
};

struct flow {
    int fd; /* -1: ended */
    uint32_t waiting[WAITING], first, count;
};

struct target {
    struct sockaddr_storage address, source;
    socklen_t length;
    int has_source;
};

/* Operations at a rate: the next one's number, and when the first was due. */
struct pacer {
    uint64_t start;
    double rate;
    size_t number;
};

static struct operation connects[MOST], exchanges[MOST];
static size_t connects_begun, exchanges_begun, oldest, pending, unanswered;
static struct flow flows[MOST_FLOWS], held[MOST_FLOWS];
static unsigned flow_count, held_count, flows_ended;
static uint64_t late;
static int poll_fd, timer_fd;

static void poll_for(int fd, uint32_t events, enum kind kind, size_t number) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)kind << 32 | number};

    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl");
}

/* A socket on its way to the target; -1 and errno when that fails at once. */
static int open_socket(const struct target *target) {
    int one = 1, fd = socket(target->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (target->has_source) {
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
        if (bind(fd, (const struct sockaddr *)&target->source, target->length))
            fail("bind to the source address");
    }
    if (connect(fd, (const struct sockaddr *)&target->address, target->length) && errno != EINPROGRESS) {
        int error = errno;

        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* Close a connection by a reset: nothing waits for its port afterwards. */
static void reset(int fd) {
    struct linger now = {1, 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(fd);
}

/* ---------------------------------------------------------------- connections, one an operation */

/* error: errno of why it failed, 0 where it did not. */
static void end_connect(struct operation *operation, int error) {
    operation->took = error ? -error : (int64_t)(now() - operation->due);
    reset(operation->fd);
    operation->fd = -1;
    pending--;
}

static void begin_connect(const struct target *target, uint64_t due) {
    struct operation *operation = &connects[connects_begun];
    uint64_t moment = now();

    if (moment - due > late)
        late = moment - due;
    *operation = (struct operation){due, moment, LOST, open_socket(target)};
    if (operation->fd >= 0) {
        poll_for(operation->fd, EPOLLOUT, CONNECT, connects_begun);
        pending++;
    } else {
        operation->took = -errno;
    }
    connects_begun++;
}

/* The error that a connection ended with, 0 for none. */
static int error_of(int fd) {
    int error = 0;
    socklen_t length = sizeof(error);

    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) ? errno : error;
}

/* Give up what has been under way for too long. Operations are in the order in which they were begun. */
static void expire(uint64_t moment) {
    for (; oldest < connects_begun; oldest++) {
        struct operation *operation = &connects[oldest];

        if (operation->fd < 0)
            continue;
        if (moment < operation->begun + PATIENCE_SECONDS * SECOND)
            return;
        end_connect(operation, ETIMEDOUT);
    }
}

/* ---------------------------------------------------------------- flows, many operations each */

static void end_flow(struct flow *flow, int by_us) {
    if (flow->fd < 0)
        return;
    reset(flow->fd);
    flow->fd = -1;
    unanswered -= flow->count; /* their operations stay lost */
    flow->count = 0;
    if (!by_us)
        flows_ended++;
}

/* Open connections, all at once, and wait for them; how many there are. */
static unsigned open_flows(const struct target *target, struct flow *into, unsigned count) {
    uint64_t deadline = now() + PATIENCE_SECONDS * SECOND;
    unsigned number, opened = 0;

    for (number = 0; number < count; number++) {
        into[opened] = (struct flow){.fd = open_socket(target)};
        if (into[opened].fd >= 0)
            opened++;
    }
    count = opened;
    for (number = opened = 0; number < count; number++) {
        struct epoll_event event = {.events = EPOLLOUT};
        int fd = into[number].fd, one = epoll_create1(EPOLL_CLOEXEC), left;

        epoll_ctl(one, EPOLL_CTL_ADD, fd, &event);
        left = now() < deadline ? (int)((deadline - now()) / 1000000) : 0;
        if (epoll_wait(one, &event, 1, left) == 1 && !error_of(fd))
            into[opened++].fd = fd;
        else
            reset(fd);
        close(one);
    }
    return opened;
}

/* Send a byte on a flow, whatever is under way on it. An operation that cannot even begin is lost. */
static void begin_exchange(struct flow *flow, uint64_t due) {
    struct operation *operation = &exchanges[exchanges_begun];
    char byte = MORE;

    *operation = (struct operation){due, now(), LOST, -1};
    if (flow->fd >= 0 && flow->count < WAITING) {
        if (send(flow->fd, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1) {
            flow->waiting[(flow->first + flow->count++) % WAITING] = (uint32_t)exchanges_begun;
            unanswered++;
        } else if (errno != EAGAIN) {
            end_flow(flow, 0);
        }
    }
    exchanges_begun++;
}

/* Take what came back: a byte for each operation, in order. Returns how many. */
static ssize_t end_exchanges(struct flow *flow) {
    char buffer[WAITING];
    ssize_t length = recv(flow->fd, buffer, sizeof(buffer), MSG_DONTWAIT), number;
    uint64_t moment = now();

    if (length < 0 && errno == EAGAIN)
        return 0;
    if (length <= 0) {
        end_flow(flow, 0);
        return 0;
    }
    for (number = 0; number < length && flow->count; number++) {
        struct operation *operation = &exchanges[flow->waiting[flow->first]];

        operation->took = (int64_t)(moment - operation->due);
        flow->first = (flow->first + 1) % WAITING;
        flow->count--;
        unanswered--;
    }
    return number;
}

/* ---------------------------------------------------------------- loops */

static uint64_t next_due(const struct pacer *pacer) {
    return pacer->rate > 0 ? pacer->start + (uint64_t)((double)pacer->number * 1e9 / pacer->rate) : UINT64_MAX;
}

static void wake_at(uint64_t moment) {
    struct itimerspec time = {.it_value = {(time_t)(moment / SECOND), (long)(moment % SECOND)}};

    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &time, NULL);
}

/* Handle what has happened. again: where the next operation begins when one ends, NULL for none. Returns whether a line
 * can be read from standard input. */
static int handle(const struct target *again) {
    struct epoll_event events[EVENTS];
    int number, asked = 0, ready = epoll_wait(poll_fd, events, EVENTS, 100);

    for (number = 0; number < ready; number++) {
        enum kind kind = (enum kind)(events[number].data.u64 >> 32);
        size_t which = (uint32_t)events[number].data.u64;
        uint64_t fired;

        if (kind == STDIN) {
            asked = 1;
        } else if (kind == TIMER) {
            if (read(timer_fd, &fired, sizeof(fired)) < 0 && errno != EAGAIN)
                fail("timer");
        } else if (kind == CONNECT) {
            end_connect(&connects[which], error_of(connects[which].fd));
            if (again && connects_begun < MOST)
                begin_connect(again, now());
        } else if (flows[which].fd >= 0 && end_exchanges(&flows[which]) && again && exchanges_begun < MOST) {
            begin_exchange(&flows[which], now());
        }
    }
    return asked;
}

static void forget(void) {
    connects_begun = exchanges_begun = oldest = pending = unanswered = 0;
    flow_count = flows_ended = 0;
    late = 0;
}

static void print_operations(const char *name, const struct operation *all, size_t count, uint64_t start) {
    const char *separator = "";
    size_t number;

    printf("\"%s\":[", name);
    for (number = 0; number < count; number++) {
        if (all[number].took == UNCOUNTED)
            continue;
        printf("%s[%llu,%lld]", separator, (unsigned long long)((all[number].due - start) / 1000),
               (long long)all[number].took);
        separator = ",";
    }
    printf("],");
}

/* End all flows, and say what was seen since `start`; sending ended at `end`. */
static void report(uint64_t start, uint64_t end) {
    unsigned number, ended = flows_ended;

    for (number = 0; number < flow_count; number++)
        end_flow(&flows[number], 1);
    printf("{");
    print_operations("connects", connects, connects_begun, start);
    print_operations("exchanges", exchanges, exchanges_begun, start);
    printf("\"ended\":%u,\"late\":%llu,\"seconds\":%.9f}\n", ended, (unsigned long long)late,
           (double)(end - start) / 1e9);
}

static void open_and_poll_flows(const struct target *target, unsigned count) {
    unsigned number;

    flow_count = open_flows(target, flows, count);
    for (number = 0; number < flow_count; number++)
        poll_for(flows[number].fd, EPOLLIN, FLOW, number);
}

static void be_on_time(int policy, int priority) {
    struct sched_param param = {.sched_priority = priority};

    sched_setscheduler(0, policy, &param); /* where it may not, what is late is told */
}

static void watch(const struct target *target, double rate, unsigned count, double flow_rate) {
    struct pacer opens = {.rate = rate}, sends = {.rate = flow_rate};
    uint64_t stopped = 0;
    char line[64];

    open_and_poll_flows(target, count);
    printf("{\"flows\":%u}\n", flow_count);
    fflush(stdout);
    if (!flow_count)
        sends.rate = 0;
    be_on_time(SCHED_RR, PRIORITY);
    opens.start = sends.start = now();
    for (;;) {
        uint64_t moment = now(), next, until = stopped ? stopped : moment; /* what was due until then is not left out */

        for (; next_due(&opens) <= until && connects_begun < MOST; opens.number++)
            begin_connect(target, next_due(&opens));
        for (; next_due(&sends) <= until && exchanges_begun < MOST; sends.number++)
            begin_exchange(&flows[sends.number % flow_count], next_due(&sends));
        expire(moment);
        if (stopped && ((!pending && !unanswered) || moment > stopped + PATIENCE_SECONDS * SECOND))
            break;
        next = next_due(&opens) < next_due(&sends) ? next_due(&opens) : next_due(&sends);
        wake_at(stopped || next > moment + SECOND / 10 ? moment + SECOND / 10 : next);
        if (handle(NULL) && !stopped) {
            stopped = now();
            if (!fgets(line, sizeof(line), stdin))
                exit(0);
        }
    }
    be_on_time(SCHED_OTHER, 0);
    for (; pending && oldest < connects_begun; oldest++)
        if (connects[oldest].fd >= 0)
            end_connect(&connects[oldest], ETIMEDOUT);
    report(opens.start, stopped);
}

/* Whether an operation has come to its end, a good one or not. */
static int any_ended(void) {
    return connects_begun + exchanges_begun > pending + unanswered;
}

/* End what is under way, without counting it; as lost where nothing else has ended. */
static void break_off(void) {
    int lost = !any_ended();
    unsigned number;

    for (; oldest < connects_begun; oldest++) {
        if (connects[oldest].fd >= 0) {
            end_connect(&connects[oldest], lost ? ETIMEDOUT : 0);
            if (!lost)
                connects[oldest].took = UNCOUNTED;
        }
    }
    for (number = 0; number < flow_count && !lost; number++)
        if (flows[number].count)
            exchanges[flows[number].waiting[flows[number].first]].took = UNCOUNTED;
}

static void in_turns(const struct target *target, unsigned count, double seconds, int as_flows) {
    uint64_t start, deadline, moment;
    unsigned number;

    if (as_flows)
        open_and_poll_flows(target, count);
    start = moment = now();
    deadline = start + (uint64_t)(seconds * 1e9);
    for (number = 0; number < (as_flows ? flow_count : count); number++) {
        if (as_flows)
            begin_exchange(&flows[number], now());
        else
            begin_connect(target, now());
    }
    while ((moment < deadline || (!any_ended() && moment < start + PATIENCE_SECONDS * SECOND)) &&
           (pending || unanswered)) {
        wake_at(moment < deadline ? deadline : moment + SECOND / 10);
        handle(target);
        moment = now();
        expire(moment);
    }
    break_off();
    report(start, moment);
}

/* ---------------------------------------------------------------- held flows */

static void hold(const struct target *target, unsigned count) {
    struct timeval patience = {PATIENCE_SECONDS, 0};
    unsigned number, room = MOST_FLOWS - held_count;

    held_count += open_flows(target, held + held_count, count < room ? count : room);
    printf("{\"ports\":[");
    for (number = 0; number < held_count; number++) {
        unsigned char port[2] = {0, 0};
        char byte = WHERE;
        int fd = held[number].fd;

        fcntl(fd, F_SETFL, 0);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
        if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, port, 2, MSG_WAITALL) != 2)
            port[0] = port[1] = 0;
        printf("%s%d", number ? "," : "", port[0] << 8 | port[1]);
    }
    printf("]}\n");
}

static void drop(void) {
    while (held_count)
        reset(held[--held_count].fd);
    printf("{\"ports\":[]}\n");
}

/* ---------------------------------------------------------------- SYN flood */

struct syn {
    struct iphdr ip;
    struct tcphdr tcp;
};

static uint16_t checksum(uint32_t sum, const void *data, size_t bytes) {
    const uint8_t *byte = data;

    for (; bytes > 1; bytes -= 2, byte += 2)
        sum += (uint32_t)byte[0] << 8 | byte[1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~sum);
}

/* A SYN from anywhere in 198.18.0.0/15. */
static void make_syn(struct syn *syn, const struct sockaddr_in *to) {
    uint32_t chance = (uint32_t)random(), source = htonl(0xc6120000u | (chance & 0x1ffff)), sum;

    memset(syn, 0, sizeof(*syn));
    syn->ip = (struct iphdr){.version = 4,
                             .ihl = 5,
                             .tot_len = htons(sizeof(*syn)),
                             .ttl = 64,
                             .protocol = IPPROTO_TCP,
                             .saddr = source,
                             .daddr = to->sin_addr.s_addr};
    syn->ip.check = checksum(0, &syn->ip, sizeof(syn->ip));
    syn->tcp.source = htons((uint16_t)(1024 + (uint32_t)random() % 64000));
    syn->tcp.dest = to->sin_port;
    syn->tcp.seq = (uint32_t)random();
    syn->tcp.doff = 5;
    syn->tcp.syn = 1;
    syn->tcp.window = htons(65535);
    sum = (ntohl(source) >> 16) + (ntohl(source) & 0xffff) + (ntohl(syn->ip.daddr) >> 16) +
          (ntohl(syn->ip.daddr) & 0xffff) + IPPROTO_TCP + sizeof(syn->tcp);
    syn->tcp.check = checksum(sum, &syn->tcp, sizeof(syn->tcp));
}

static void flood(const struct target *target, double rate) {
    const struct sockaddr_in *to = (const struct sockaddr_in *)&target->address;
    struct pacer sends = {now(), rate / SYN_BATCH, 0};
    int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW), number, asked = 0;
    size_t sent = 0;
    char line[64];

    if (fd < 0 || target->address.ss_family != AF_INET) {
        printf("{\"error\":\"no flood here: it takes root and IPv4\"}\n");
        if (fd >= 0)
            close(fd);
        return;
    }
    printf("{\"flows\":0}\n");
    fflush(stdout);
    while (!asked) {
        for (number = 0; number < SYN_BATCH && next_due(&sends) <= now(); number++) {
            struct syn syn;

            make_syn(&syn, to);
            sent += sendto(fd, &syn, sizeof(syn), 0, (const struct sockaddr *)to, sizeof(*to)) == sizeof(syn);
        }
        sends.number += number == SYN_BATCH;
        wake_at(next_due(&sends));
        asked = handle(NULL);
    }
    close(fd);
    if (!fgets(line, sizeof(line), stdin))
        exit(0);
    printf("{\"sent\":%zu,\"seconds\":%.9f}\n", sent, (double)(now() - sends.start) / 1e9);
}

/* ---------------------------------------------------------------- requests */

static void obey(const char *name, const struct target *target, const double *numbers) {
    unsigned count = numbers[0] > 0 && numbers[0] <= MOST_FLOWS ? (unsigned)numbers[0] : 1;

    forget();
    if (!strcmp(name, "watch"))
        watch(target, numbers[0], numbers[1] < MOST_FLOWS ? (unsigned)numbers[1] : MOST_FLOWS, numbers[2]);
    else if (!strcmp(name, "connects") || !strcmp(name, "exchanges"))
        in_turns(target, count, numbers[1], name[0] == 'e');
    else if (!strcmp(name, "hold"))
        hold(target, count);
    else if (!strcmp(name, "drop"))
        drop();
    else if (!strcmp(name, "flood"))
        flood(target, numbers[0]);
    else
        printf("{\"error\":\"no operation %s\"}\n", name);
}

int main(void) {
    char line[512], name[32], address[64], source[64];
    struct rlimit files;

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    poll_for(timer_fd, EPOLLIN, TIMER, 0);
    setvbuf(stdin, NULL, _IONBF, 0); /* so that what is not read yet is seen by epoll */
    poll_for(STDIN_FILENO, EPOLLIN, STDIN, 0);
    while (fgets(line, sizeof(line), stdin)) {
        struct target target = {.has_source = 0};
        double numbers[3] = {0, 0, 0};
        socklen_t length;
        int port;

        if (sscanf(line, "%31s %63s %d %63s %lf %lf %lf", name, address, &port, source, &numbers[0], &numbers[1],
                   &numbers[2]) < 5 ||
            !parse_address(address, port, &target.address, &target.length)) {
            printf("{\"error\":\"not a request\"}\n");
        } else {
            target.has_source = strcmp(source, "-") != 0;
            if (target.has_source && !parse_address(source, 0, &target.source, &length))
                printf("{\"error\":\"not a source address\"}\n");
            else
                obey(name, &target, numbers);
        }
        fflush(stdout);
    }
    return 0;
}
