/* rabbitmq-c: publish or consume; prints microseconds of CPU time and of time for each message, and then
   the latencies of works that measure them, in seconds. */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define PREFETCH 100

static void fail(const char *what) {
    fprintf(stderr, "rabbitmq-c: %s failed\n", what);
    exit(1);
}

static void check(amqp_connection_state_t connection, const char *what) {
    if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec
        + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void send(amqp_connection_state_t connection, const char *queue, const char *body) {
    amqp_basic_properties_t properties;
    memset(&properties, 0, sizeof properties);
    properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_CONTENT_ENCODING_FLAG
        | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_PRIORITY_FLAG;
    properties.content_type = amqp_cstring_bytes("application/json");
    properties.content_encoding = amqp_cstring_bytes("utf-8");
    properties.delivery_mode = 2;
    if (amqp_basic_publish(connection, 1, amqp_empty_bytes, amqp_cstring_bytes(queue), 0, 0, &properties,
                           amqp_cstring_bytes(body)) != AMQP_STATUS_OK)
        fail("publish");
}

static void publish(amqp_connection_state_t connection, const char *queue, const char *mark,
                    const char *body, long count) {
    for (long number = 0; number < count; number++) send(connection, queue, body);
    /* The reply says that the broker has all that was sent before. */
    amqp_queue_declare(connection, 1, amqp_cstring_bytes(mark), 1, 0, 0, 0, amqp_empty_table);
    check(connection, "declare");
}

/* Publish at a rate (0: as fast as possible), and wait for each confirm. */
static void confirmed(amqp_connection_state_t connection, const char *queue, const char *body, long count,
                      double rate, double *took) {
    amqp_confirm_select(connection, 1);
    check(connection, "confirm");
    double began = seconds();
    for (long number = 0; number < count; number++) {
        double due = rate > 0 ? began + number / rate : seconds(), pause = due - seconds();
        if (pause > 0) {
            struct timespec wait = {(time_t)pause, (long)((pause - (time_t)pause) * 1e9)};
            nanosleep(&wait, NULL);
        }
        send(connection, queue, body);
        amqp_frame_t frame;
        amqp_maybe_release_buffers(connection);
        do {
            if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK) fail("confirm");
        } while (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD);
        took[number] = seconds() - due;
    }
}

/* Consume; where *took* is given, messages say when they were due. */
static void consume(amqp_connection_state_t connection, const char *queue, long count, double *took) {
    amqp_basic_qos(connection, 1, 0, PREFETCH, 0);
    check(connection, "qos");
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0,
                       amqp_empty_table);
    check(connection, "consume");
    if (took) {
        puts("ready");
        fflush(stdout);
    }
    for (long number = 0; number < count; number++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, NULL, 0);
        if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("delivery");
        if (took) {
            char body[4096];
            size_t length = envelope.message.body.len;
            if (length >= sizeof body) fail("body");
            memcpy(body, envelope.message.body.bytes, length);
            body[length] = 0;
            const char *sent = strstr(body, "\"sent\": ");
            if (!sent) fail("body");
            took[number] = seconds() - strtod(sent + 8, NULL) / 1e9;
        }
        if (amqp_basic_ack(connection, 1, envelope.delivery_tag, 0) != AMQP_STATUS_OK) fail("ack");
        amqp_destroy_envelope(&envelope);
    }
}

int main(int argc, char **argv) {
    if (argc != 12) fail("command line");
    const char *work = argv[1], *queue = argv[7], *mark = argv[8], *body = argv[10];
    long count = atol(argv[9]);
    double rate = atof(argv[11]), *took = NULL;
    if (!strcmp(work, "confirmed") || !strcmp(work, "listen")) {
        took = calloc(count, sizeof *took);
        if (!took) fail("memory");
    }
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *tcp = amqp_tcp_socket_new(connection);
    if (!tcp || amqp_socket_open(tcp, argv[2], atoi(argv[3]))) fail("connect");
    amqp_rpc_reply_t reply = amqp_login(connection, argv[6], 0, 131072, 0, AMQP_SASL_METHOD_PLAIN,
                                        argv[4], argv[5]);
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("login");
    amqp_channel_open(connection, 1);
    check(connection, "channel");
    double cpu = cpu_seconds(), began = seconds();
    if (strcmp(work, "publish") == 0) publish(connection, queue, mark, body, count);
    else if (strcmp(work, "confirmed") == 0) confirmed(connection, queue, body, count, rate, took);
    else consume(connection, queue, count, took);
    printf("%f %f\n", (cpu_seconds() - cpu) / count * 1e6, (seconds() - began) / count * 1e6);
    for (long number = 0; took && number < count; number++) printf("%.7f\n", took[number]);
    free(took);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    return 0;
}
