/* vta-server: a board that others measure on. docs/server.md describes it. */
#define _GNU_SOURCE

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "driver_api.h"
#include "server.h"
#include "tracker.h"

#define LEAST_TOKEN 16u

static volatile int stop;

static void end(int number) {
  (void)number;
  stop = 1;
}

static int usage(void) {
  fprintf(stderr,
          "usage: vta-server %s[--listen ADDRESS:PORT] [--token-file FILE] [--name NAME] [--pool MIB] [--limit SECONDS]\n"
          "                  [--idle SECONDS] [--tracker ADDRESS:PORT --key KEY [--tell ADDRESS]]\n",
          driver_needs_path() ? "--driver LIBRARY " : "");
  return 2;
}

static int read_token(struct settings *settings, const char *path) {
  FILE *file = fopen(path, "r");
  size_t size = file == NULL ? 0 : fread(settings->token, 1, sizeof settings->token, file);
  if (file != NULL) fclose(file);
  while (size > 0 && strchr(" \t\r\n", settings->token[size - 1]) != NULL) size--;
  settings->token_bytes = size;
  if (size >= LEAST_TOKEN) return 1;
  fprintf(stderr, "vta-server: %s %s; put 16 to 256 random characters there, as `openssl rand -hex 32` makes\n", path,
          file == NULL ? "cannot be read" : "has no token of 16 characters");
  return 0;
}

/* A whole number of an option, times `unit`; 0: it is none, or none from `least` to `most`. */
static int read_number(const char *text, uint64_t least, uint64_t most, uint64_t unit, uint64_t *out) {
  char *rest;
  unsigned long long value = strtoull(text, &rest, 10);
  if (text[0] < '0' || text[0] > '9' || *rest != '\0' || value < least || value > most) return 0;
  *out = value * unit;
  return 1;
}

/* Whether a text can stand in JSON, and in a line, as it is. */
static int is_plain(const char *text) {
  size_t good = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:");
  return text[0] != '\0' && text[good] == '\0' && good <= 80;
}

static int read_option(struct settings *settings, const char *name, char *value, int *good) {
  if (strcmp(name, "--driver") == 0) {
    settings->driver = value;
  } else if (strcmp(name, "--listen") == 0) {
    *good = take_apart(value, &settings->address, &settings->port);
  } else if (strcmp(name, "--token-file") == 0) {
    if (!read_token(settings, value)) exit(2);
  } else if (strcmp(name, "--name") == 0) {
    settings->name = value;
    *good = is_plain(value);
  } else if (strcmp(name, "--pool") == 0) {
    *good = read_number(value, 0, SIZE_MAX >> 21, 1u << 20, &settings->pool_bytes);
  } else if (strcmp(name, "--limit") == 0) {
    *good = read_number(value, 1, 1000000, 1000, &settings->limit_ms);
  } else if (strcmp(name, "--idle") == 0) {
    *good = read_number(value, 1, 1000000, 1000, &settings->idle_ms);
  } else if (strcmp(name, "--tracker") == 0) {
    settings->tracker = value;
  } else if (strcmp(name, "--key") == 0) {
    settings->key = value;
    *good = is_plain(value) && strchr(value, ':') == NULL;
  } else if (strcmp(name, "--tell") == 0) {
    settings->tell = value;
    *good = is_plain(value);
  } else {
    return 0;
  }
  return 1;
}

static int read_options(struct settings *settings, int count, char **words) {
  for (int i = 1; i < count; i += 2) {
    int good = 1;
    if (i + 1 == count || !read_option(settings, words[i], words[i + 1], &good)) return 0;
    if (good) continue;
    fprintf(stderr, "vta-server: %s is not what it can be; addresses are numbers: 127.0.0.1:9090\n", words[i]);
    return 0;
  }
  return (settings->tracker == NULL) == (settings->key == NULL) && (settings->driver != NULL) == driver_needs_path();
}

static int check(const struct settings *settings) {
  struct sockaddr_storage place;
  char text[128];
  const char *address;
  uint32_t port;
  address_of(settings->address, settings->port, &place);
  if (!is_loopback(&place) && settings->token_bytes == 0) {
    fprintf(stderr, "vta-server: %s is not loopback: whoever reaches it could run anything; give --token-file\n",
            settings->address);
    return 0;
  }
  snprintf(text, sizeof text, "%s", settings->tracker == NULL ? "127.0.0.1:1" : settings->tracker);
  if (take_apart(text, &address, &port)) return 1;
  fprintf(stderr, "vta-server: --tracker is %s; allowed: numbers, as 127.0.0.1:9190\n", settings->tracker);
  return 0;
}

int main(int count, char **words) {
  static struct server server;
  struct settings *settings = &server.settings;
  struct sigaction action;
  settings->name = "vta";
  settings->address = "127.0.0.1";
  settings->port = 9090;
  settings->pool_bytes = 64u << 20;
  settings->limit_ms = 600000;
  settings->idle_ms = 300000;
  if (!read_options(settings, count, words)) return usage();
  if (!check(settings)) return 2;
  memset(&action, 0, sizeof action);
  action.sa_handler = end;
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGHUP, &action, NULL);
  signal(SIGPIPE, SIG_IGN);
  if (!server_open(&server)) return 1;
  server_run(&server, &stop);
  server_close(&server);
  return 0;
}
