/* What clients and the server of the benchmark say to each other. */
#ifndef HOTPLANE_PROTOCOL_H
#define HOTPLANE_PROTOCOL_H

enum {
    QUERY_BYTES = 40,
    ANSWER_BYTES = 120,
    FLOOD_BYTES = 64,
    STREAM_BYTES = 128 << 10, /* at once, as iperf3 does */
    BATCH = 32,               /* datagrams in one system call */
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

#endif
