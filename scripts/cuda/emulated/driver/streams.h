// Which operation comes before which: those of one stream in their order, those of two streams only where an event or the host
// waits between them.
#pragma once
#include <cstdint>
#include <map>

namespace emulated {

using StreamId = uint64_t;
// How many operations of each stream are known to be over.
using Clock = std::map<StreamId, uint64_t>;

// An operation: the `at`th of its stream; 0 is none.
struct Use {
  StreamId stream = 0;
  uint64_t at = 0;
  const char *by = nullptr;
};

struct Event {
  Clock before;
};

StreamId stream_of(void *handle);
// An operation begins on a stream, and is the current one until the next.
void begin_operation(StreamId stream);
Use current_use(const char *by);
// Whether an earlier operation is over when the current one runs.
bool is_before_current(const Use &use);
void record(Event &event, StreamId stream);
void stream_waits(StreamId stream, const Event &event);
void host_waits(const Event &event);
void host_waits_for_stream(StreamId stream);
void host_waits_for_all();
uint64_t host_threads();

}  // namespace emulated
