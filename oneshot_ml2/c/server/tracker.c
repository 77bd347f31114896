/* See tracker.h. The protocol is that of python/tvm/rpc/tracker.py in apache/tvm: both sides send a magic number, then
 * messages of an int32 length and JSON. A server puts a key of one use; a client that asks is given it, and the server
 * puts another one when it is free again. */
#define _GNU_SOURCE

#include "tracker.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "frame.h"

#define MAGIC 0x2f271u
enum { CODE_PUT = 3, CODE_UPDATE_INFO = 5, CODE_PENDING = 7 };

/* Seconds between two looks, and looks until a key that was given out and not used is replaced. */
#define PERIOD_MS 2000
#define UNUSED_LOOKS 3
#define MOST_ANSWER 65536u

socklen_t address_of(const char *address, uint32_t port, struct sockaddr_storage *out) {
  struct sockaddr_in *four = (struct sockaddr_in *)out;
  struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
  memset(out, 0, sizeof *out);
  if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons((uint16_t)port);
    return sizeof *four;
  }
  if (inet_pton(AF_INET6, address, &six->sin6_addr) == 1) {
    six->sin6_family = AF_INET6;
    six->sin6_port = htons((uint16_t)port);
    return sizeof *six;
  }
  return 0;
}

uint32_t port_of(const struct sockaddr_storage *place) {
  if (place->ss_family == AF_INET6) return ntohs(((const struct sockaddr_in6 *)place)->sin6_port);
  return ntohs(((const struct sockaddr_in *)place)->sin_port);
}

int is_loopback(const struct sockaddr_storage *place) {
  if (place->ss_family == AF_INET6) return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)place)->sin6_addr);
  return ntohl(((const struct sockaddr_in *)place)->sin_addr.s_addr) >> 24 == 127;
}

int take_apart(char *text, const char **address, uint32_t *port) {
  char *colon = strrchr(text, ':'), *end;
  struct sockaddr_storage place;
  unsigned long number;
  if (colon == NULL || colon[1] == '\0') return 0;
  number = strtoul(colon + 1, &end, 10);
  if (*end != '\0' || number > 65535) return 0;
  *colon = '\0';
  if (text[0] == '[' && colon[-1] == ']') {
    colon[-1] = '\0';
    text++;
  }
  *address = text;
  *port = (uint32_t)number;
  return address_of(text, *port, &place) != 0;
}

/* Talking ---------------------------------------------------------------------------------------- */

struct talk {
  const char *address, *key, *tell;
  uint32_t tracker_port, port;
  int fd, free, unused;
  char match[128];
  unsigned long keys;
  char answer[MOST_ANSWER + 1];
};

static int exactly(int fd, void *data, size_t size, int out) {
  uint8_t *at = data;
  while (size > 0) {
    ssize_t done = out ? send(fd, at, size, MSG_NOSIGNAL) : recv(fd, at, size, 0);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return 0;
    at += done, size -= (size_t)done;
  }
  return 1;
}

/* Send a message, and have its answer in `answer`. */
static int ask(struct talk *talk, const char *message) {
  uint8_t head[4];
  uint32_t size = (uint32_t)strlen(message);
  put32(head, size);
  if (!exactly(talk->fd, head, 4, 1) || !exactly(talk->fd, (void *)message, size, 1)) return 0;
  if (!exactly(talk->fd, head, 4, 0)) return 0;
  size = get32(head);
  if (size > MOST_ANSWER || !exactly(talk->fd, talk->answer, size, 0)) return 0;
  talk->answer[size] = '\0';
  return 1;
}

static int ask_well(struct talk *talk, const char *message) { return ask(talk, message) && strcmp(talk->answer, "0") == 0; }

/* The address that clients are given, as JSON. */
static void told(const struct talk *talk, char *out, size_t size) {
  if (talk->tell == NULL) {
    snprintf(out, size, "null");
  } else {
    snprintf(out, size, "\"%s\"", talk->tell);
  }
}

static int put_key(struct talk *talk) {
  char message[512], tell[80];
  told(talk, tell, sizeof tell);
  snprintf(talk->match, sizeof talk->match, "%.80s:0.%lu%06lu", talk->key, (unsigned long)getpid(), ++talk->keys);
  snprintf(message, sizeof message, "[%d, \"%.80s\", [%u, \"%s\"], %s]", CODE_PUT, talk->key, talk->port, talk->match,
           tell);
  talk->unused = 0;
  return ask_well(talk, message);
}

static int connect_now(struct talk *talk) {
  const struct timeval limit = {5, 0};
  struct sockaddr_storage place;
  socklen_t size = address_of(talk->address, talk->tracker_port, &place);
  char message[256], tell[80];
  uint8_t magic[4];
  talk->fd = socket(place.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (talk->fd < 0) return 0;
  setsockopt(talk->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(talk->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  put32(magic, MAGIC);
  if (connect(talk->fd, (struct sockaddr *)&place, size) != 0 || !exactly(talk->fd, magic, 4, 1) ||
      !exactly(talk->fd, magic, 4, 0) || get32(magic) != MAGIC)
    return 0;
  told(talk, tell, sizeof tell);
  snprintf(message, sizeof message, "[%d, {\"key\": \"server:%.80s\", \"addr\": [%s, %u]}]", CODE_UPDATE_INFO, talk->key,
           tell, talk->port);
  return ask_well(talk, message) && (!talk->free || put_key(talk));
}

/* Put a new key where the old one has been given out: at once when the board has become free, else after some looks. */
static int look(struct talk *talk, int now) {
  char message[16], quoted[132];
  if (!talk->free) return 1;
  snprintf(message, sizeof message, "[%d]", CODE_PENDING);
  if (!ask(talk, message)) return 0;
  snprintf(quoted, sizeof quoted, "\"%s\"", talk->match);
  if (strstr(talk->answer, quoted) != NULL) {
    talk->unused = 0;
    return 1;
  }
  return now || ++talk->unused >= UNUSED_LOOKS ? put_key(talk) : 1;
}

static void keep_registered(struct talk *talk, int orders) {
  int good = connect_now(talk);
  for (;;) {
    struct pollfd polled = {orders, POLLIN, 0};
    int now = 0;
    char what;
    if (!good && talk->fd >= 0) close(talk->fd), talk->fd = -1;
    if (poll(&polled, 1, PERIOD_MS) > 0) {
      if (read(orders, &what, 1) != 1) _exit(0);
      now = what == TRACKER_FREE;
      talk->free = now;
    }
    good = talk->fd >= 0 ? look(talk, now) : connect_now(talk);
  }
}

int tracker_begin(const char *tracker, const char *key, const char *tell, uint32_t port, int listener) {
  static struct talk talk;
  static char text[128];
  int orders[2];
  pid_t pid;
  snprintf(text, sizeof text, "%s", tracker);
  talk.key = key, talk.tell = tell, talk.port = port, talk.free = 1, talk.fd = -1;
  if (!take_apart(text, &talk.address, &talk.tracker_port) || pipe2(orders, O_CLOEXEC) != 0) return -1;
  pid = fork();
  if (pid == 0) {
    close(listener);
    close(orders[1]);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_IGN);
    keep_registered(&talk, orders[0]);
  }
  close(orders[0]);
  if (pid > 0) return orders[1];
  close(orders[1]);
  return -1;
}

void tracker_tell(int pipe, char what) {
  if (pipe >= 0) (void)!write(pipe, &what, 1);
}
