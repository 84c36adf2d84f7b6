#include "report.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>

#include "settings.h"

namespace emulated {
namespace {

constexpr int kinds = static_cast<int>(Kind::kinds);
// Names in JSON.
const char *const plural[kinds] = {"launches",    "products", "uploads", "read_backs",    "device_copies", "memsets",
                                   "allocations", "frees",    "events",  "event_records", "waits",         "modules"};

struct Tally {
  uint64_t times = 0, bytes = 0, nanoseconds = 0;
};
// Like everything here, never destroyed: operations of a program that ends may come late.
auto &by_name = *new std::map<std::pair<int, std::string>, Tally>;
uint64_t times[kinds];  // of each kind
auto &complaints = *new std::map<std::string, uint64_t>;
auto &remarks = *new std::map<std::string, uint64_t>;

FILE *trace() {
  static FILE *file = settings().trace.empty() ? nullptr : fopen(settings().trace.c_str(), "w");
  return file;
}

void say(std::map<std::string, uint64_t> &said, const char *what, const std::string &text) {
  if (!said[text]++ && !settings().quiet) fprintf(stderr, "emulated device: %s%s\n", what, text.c_str());
}

Tally total(int kind) {
  Tally sum;
  for (auto &[key, tally] : by_name)
    if (key.first == kind) sum.times += tally.times, sum.bytes += tally.bytes, sum.nanoseconds += tally.nanoseconds;
  return sum;
}

std::string quoted(const std::string &text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c < ' ' && c >= 0 ? ' ' : c;
  }
  return result + '"';
}

// How often each kind was asked for until now, in one line: what was asked for between two moments is the difference.
void write_mark() {
  static FILE *file = settings().marks.empty() ? nullptr : fopen(settings().marks.c_str(), "w");
  if (!file) return;
  if (ftell(file) == 0)
    for (const char *name : plural) fprintf(file, "%s%c", name, name == plural[kinds - 1] ? '\n' : ' ');
  for (int kind = 0; kind < kinds; kind++) fprintf(file, "%lu%c", times[kind], kind == kinds - 1 ? '\n' : ' ');
  fflush(file);
  static uint64_t marks;
  if (++marks == settings().marks_wanted) exit(0);
}

// Counts by kind are a line each, for readers without a parser of JSON.
void write_json(FILE *out, const MemoryInUse &memory, size_t host_threads) {
  fprintf(out, "{\n");
  for (int kind = 0; kind < kinds; kind++) {
    Tally sum = total(kind);
    fprintf(out, "\"%s\": %lu,\n\"%s_bytes\": %lu,\n", plural[kind], sum.times, plural[kind], sum.bytes);
  }
  fprintf(out, "\"peak_bytes\": %zu,\n\"bytes_at_exit\": %zu,\n\"allocations_at_exit\": %zu,\n\"host_threads\": %zu,\n",
          memory.peak, memory.bytes, memory.allocations, host_threads);
  for (Kind kind : {Kind::launch, Kind::product}) {
    fprintf(out, "\"%s\": {", kind == Kind::launch ? "kernels" : "shapes");
    const char *comma = "\n";
    for (auto &[key, tally] : by_name) {
      if (key.first != static_cast<int>(kind)) continue;
      fprintf(out, "%s  %s: {\"times\": %lu, \"ms\": %.3f}", comma, quoted(key.second).c_str(), tally.times, tally.nanoseconds / 1e6);
      comma = ",\n";
    }
    fprintf(out, "},\n");
  }
  for (auto *said : {&remarks, &complaints}) {
    fprintf(out, "\"%s\": [", said == &remarks ? "remarks" : "complaints");
    const char *comma = "\n";
    for (auto &[text, times] : *said) {
      fprintf(out, "%s  %s", comma, quoted(text).c_str());
      comma = ",\n";
    }
    fprintf(out, said == &remarks ? "],\n" : "]\n}\n");
  }
}

void write_text(FILE *out, const MemoryInUse &memory, size_t host_threads) {
  fprintf(out, "emulated device, in all:\n");
  for (int kind = 0; kind < kinds; kind++) {
    Tally sum = total(kind);
    if (sum.times) fprintf(out, "%10lu %-14s %15lu bytes %12.3f ms\n", sum.times, plural[kind], sum.bytes, sum.nanoseconds / 1e6);
  }
  fprintf(out, "at most %zu bytes of memory in use; at exit %zu in %zu allocations; %zu host threads\n", memory.peak,
          memory.bytes, memory.allocations, host_threads);
  for (auto &[key, tally] : by_name)
    if (key.first <= static_cast<int>(Kind::product))
      fprintf(out, "%10lu %-40s %12.3f ms\n", tally.times, key.second.c_str(), tally.nanoseconds / 1e6);
  for (auto &[text, times] : complaints) fprintf(out, "complaint, %lu times: %s\n", times, text.c_str());
}

}  // namespace

void count(Kind kind, const std::string &name, size_t bytes) {
  Tally &tally = by_name[{static_cast<int>(kind), name}];
  tally.times++;
  tally.bytes += bytes;
  times[static_cast<int>(kind)]++;
  if (kind == Kind::read_back || kind == Kind::wait) write_mark();
  if (trace()) fprintf(trace(), "%s %s %zu\n", plural[static_cast<int>(kind)], name.c_str(), bytes);
}

void add_time(Kind kind, const std::string &name, uint64_t nanoseconds) {
  by_name[{static_cast<int>(kind), name}].nanoseconds += nanoseconds;
}

void trace_detail(const std::string &text) {
  if (trace()) fprintf(trace(), "  %s\n", text.c_str());
}

void complain(const std::string &what) {
  say(complaints, "", what);
  if (!settings().strict) return;
  // Once more where EMULATED_QUIET kept it: this is why the program ends.
  if (settings().quiet) fprintf(stderr, "emulated device: %s\n", what.c_str());
  abort();
}

void remark(const std::string &what) { say(remarks, "remark: ", what); }

void report(const MemoryInUse &memory, size_t host_threads) {
  if (trace()) fflush(trace());
  if (settings().summary) write_text(stderr, memory, host_threads);
  std::string path = settings().counts;
  if (path.empty()) return;
  if (size_t at = path.find("%p"); at != path.npos) path.replace(at, 2, std::to_string(getpid()));
  FILE *out = fopen(path.c_str(), "w");
  if (!out) {
    perror(path.c_str());
    return;
  }
  write_json(out, memory, host_threads);
  fclose(out);
}

}  // namespace emulated
