// The settings of the emulated device: environment variables, each read once. README.md lists them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emulated {

enum class Order { normal, reverse, random };  // of blocks, and of threads between barriers
enum class Guard { none, end, start };         // the side of each allocation at which a page cannot be touched

struct Settings {
  Order order;
  Guard guard;
  uint64_t seed;
  size_t memory;            // bytes of the device
  bool pools;               // whether it has memory pools
  uint64_t failing_launch;  // the launch that ends the context, from 1; 0 for none
  bool strict;              // a complaint ends the program
  bool quiet;
  bool summary;             // counts as text to standard error at exit
  std::string counts;       // counts as JSON to this file at exit; %p in it is the process
  std::string marks;        // counts until each read-back and each wait of the host, a line each, to this file
  uint64_t marks_wanted;    // after so many lines of them the program ends; 0 for never
  std::string trace;        // every operation to this file
};

// A value that cannot be read ends the program.
const Settings &settings();

}  // namespace emulated
