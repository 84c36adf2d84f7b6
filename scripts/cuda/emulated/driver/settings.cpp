#include "settings.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {
namespace {

[[noreturn]] void refuse(const char *name, const char *value) {
  fprintf(stderr, "emulated device: %s=%s is no such setting; scripts/cuda/emulated/README.md lists them\n", name, value);
  exit(2);
}

const char *text(const char *name) {
  const char *value = getenv(name);
  return value ? value : "";
}

uint64_t number(const char *name, uint64_t absent) {
  const char *value = text(name);
  if (!*value) return absent;
  char *end;
  uint64_t result = strtoull(value, &end, 10);
  if (*end) refuse(name, value);
  return result;
}

bool flag(const char *name, bool absent) {
  uint64_t value = number(name, absent);
  if (value > 1) refuse(name, text(name));
  return value;
}

Order order() {
  const char *value = text("EMULATED_ORDER");
  if (!*value || !strcmp(value, "normal")) return Order::normal;
  if (!strcmp(value, "reverse")) return Order::reverse;
  if (!strcmp(value, "random")) return Order::random;
  refuse("EMULATED_ORDER", value);
}

Guard guard() {
  const char *value = text("EMULATED_GUARD");
  if (!*value || !strcmp(value, "none")) return Guard::none;
  if (!strcmp(value, "end")) return Guard::end;
  if (!strcmp(value, "start")) return Guard::start;
  refuse("EMULATED_GUARD", value);
}

}  // namespace

const Settings &settings() {
  // Never destroyed: the report at exit reads it.
  static const Settings &read = *new Settings{
      order(),
      guard(),
      number("EMULATED_SEED", 1),
      number("EMULATED_MEMORY", 8 << 10) << 20,
      flag("EMULATED_POOLS", true),
      number("EMULATED_FAILING_LAUNCH", 0),
      flag("EMULATED_STRICT", false),
      flag("EMULATED_QUIET", false),
      flag("EMULATED_SUMMARY", false),
      text("EMULATED_COUNTS"),
      text("EMULATED_MARKS"),
      number("EMULATED_MARKS_WANTED", 0),
      text("EMULATED_TRACE"),
  };
  return read;
}

}  // namespace emulated
