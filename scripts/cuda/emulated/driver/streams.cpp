#include "streams.h"

#include <algorithm>

namespace emulated {
namespace {

auto &known = *new std::map<StreamId, Clock>;  // to the operations of a stream; its own count of operations among them
auto &known_to_host = *new Clock;              // one for all host threads
StreamId current;
uint64_t threads;

void merge(Clock &into, const Clock &from) {
  for (auto &[stream, at] : from) into[stream] = std::max(into[stream], at);
}

}  // namespace

StreamId stream_of(void *handle) {
  // CU_STREAM_PER_THREAD is a stream of the calling host thread, apart from those of other threads.
  static void *const per_thread = reinterpret_cast<void *>(2);
  static thread_local uint64_t host_thread;
  if (!host_thread) host_thread = ++threads;
  return handle == per_thread ? host_thread : reinterpret_cast<StreamId>(handle) << 32;
}

void begin_operation(StreamId stream) {
  current = stream;
  Clock &clock = known[stream];
  clock[stream]++;
  merge(clock, known_to_host);
}

Use current_use(const char *by) { return {current, known[current][current], by}; }

bool is_before_current(const Use &use) {
  if (!use.at || use.stream == current) return true;
  const Clock &clock = known[current];
  auto found = clock.find(use.stream);
  return found != clock.end() && use.at <= found->second;
}

void record(Event &event, StreamId stream) { event.before = known[stream]; }
void stream_waits(StreamId stream, const Event &event) { merge(known[stream], event.before); }
void host_waits(const Event &event) { merge(known_to_host, event.before); }
void host_waits_for_stream(StreamId stream) { merge(known_to_host, known[stream]); }
void host_waits_for_all() {
  for (auto &[stream, clock] : known) merge(known_to_host, clock);
}
uint64_t host_threads() { return threads; }

}  // namespace emulated
