// What the driver has to know of a kernel, taken from its signature. build.sh adds EMULATED_KERNEL(name) for each kernel of a source.
#pragma once

namespace emulated {

template <class T>
constexpr bool may_hold_addresses =
    std::is_pointer_v<T> || std::is_class_v<T> || std::is_void_v<T> || (std::is_integral_v<T> && sizeof(std::conditional_t<std::is_void_v<T>, char, T>) == 8);

template <class T>
constexpr Parameter parameter() {
  if constexpr (std::is_pointer_v<T>) {
    using Pointee = std::remove_pointer_t<T>;
    return {sizeof(T), true, std::is_const_v<Pointee>, may_hold_addresses<std::remove_cv_t<Pointee>>};
  } else {
    return {sizeof(T), false, true, may_hold_addresses<T>};
  }
}

// An address in the module's shared memory.
inline void *static_shared() {
  static thread_local char here;
  return &here;
}

template <auto kernel>
struct Entry;

template <class... Arguments, void (*kernel)(Arguments...)>
struct Entry<kernel> {
  static constexpr Parameter parameters[] = {parameter<std::remove_cv_t<Arguments>>()..., {}};

  template <size_t... I>
  static void call(void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<Arguments> *>(arguments[I])...);
  }

  static void run(Block &block) {
    emulated_block = &block;
    gridDim = block.grid, blockDim = block.size, blockIdx = block.index;
    while (block.started < block.threads) {
      unsigned thread = block.current = block.order[block.started++];
      threadIdx = block.thread_index[thread];
      call(block.arguments, std::index_sequence_for<Arguments...>());
      // Another thread may have ended since: `current` is this one's again.
      unsigned self = block.current;
      block.ended++;
      block.ended_lanes[self / warp_size] |= 1u << self % warp_size;
      if (block.waiting) emulated_thread_ended();
    }
  }

  static constexpr Kernel describe(const char *name) { return {name, sizeof...(Arguments), parameters, run, static_shared}; }
};

}  // namespace emulated

#define EMULATED_KERNEL(NAME)                                                              \
  static const emulated::Kernel emulated_kernel_##NAME = emulated::Entry<NAME>::describe(#NAME); \
  __attribute__((constructor)) static void emulated_register_##NAME() { emulated_register(&emulated_kernel_##NAME); }
