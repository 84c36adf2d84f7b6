#include "threads.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "memory.h"
#include "report.h"
#include "settings.h"
#include "shuffle.h"

// Saves the registers that a call preserves, and the stack pointer in `*from`; goes on where `to` was saved.
extern "C" void emulated_switch_stack(void **from, void *to);
__asm__(
    ".text\n.globl emulated_switch_stack\n.hidden emulated_switch_stack\n.type emulated_switch_stack, @function\n"
    "emulated_switch_stack:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
    "  ret\n");

namespace emulated {
namespace {

// More than a kernel's local memory takes: build.sh refuses a function with half as much.
constexpr size_t stack_bytes = 64 << 10;
// Between the tops of two stacks, so that these do not fall on the same few lines of a cache.
constexpr size_t stagger = 320, staggered = 64;

struct Fiber {
  void *stack_pointer = nullptr;
  unsigned thread = 0;  // of the block, once it waits
};

// What waits at one barrier of a block.
struct Barrier {
  Fiber *fiber[max_threads];
  unsigned waiting, count, result, line;
  bool several_lines;
};

// Lanes of a warp, each waiting for those of its mask.
struct Warp {
  Fiber *fiber[warp_size];
  void *brought[warp_size];
  Combine combine[warp_size];
  uint32_t mask[warp_size];
  uint32_t waiting;      // a bit for each lane
  uint32_t common_mask;  // of those that wait, unless `several_masks`
  bool several_masks;

  uint32_t waiting_with(uint32_t of) const {
    if (!several_masks) return common_mask == of ? waiting : 0;
    uint32_t group = 0;
    for (unsigned lane = 0; lane < warp_size; lane++)
      if (waiting >> lane & 1 && mask[lane] == of) group |= 1u << lane;
    return group;
  }
};

// Fibers that can go on: a ring.
struct Ready {
  Fiber *fiber[max_threads];
  unsigned first, size;
  void push(Fiber *f) { fiber[(first + size++) % max_threads] = f; }
  Fiber *take_first() {
    Fiber *f = fiber[first];
    first = (first + 1) % max_threads, size--;
    return f;
  }
  Fiber *take(unsigned i) {
    std::swap(fiber[(first + i) % max_threads], fiber[first]);
    return take_first();
  }
};

// One block runs at a time: the driver's lock is held.
const Kernel *kernel;
Block *block;
Fiber *running;
void *scheduler;  // its stack pointer while fibers run
std::vector<Fiber *> idle;
Ready ready;
Barrier barrier;
Warp warps[max_warps];
Fault fault;
std::string fault_text;
bool in_kernel;
Order order;

[[noreturn]] void end_block(Fault kind, const std::string &what) {
  fault = kind, fault_text = what;
  in_kernel = false;
  void *abandoned;
  emulated_switch_stack(&abandoned, scheduler);
  abort();  // nobody switches back
}

std::string describe_thread(unsigned thread) {
  char text[100];
  Dim at = block->index, t = block->thread_index[thread];
  snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", at.x, at.y, at.z, t.x, t.y, t.z);
  return text;
}

std::string here() { return std::string(kernel->name) + ": " + describe_thread(block->current) + ": "; }

Fiber *next_fiber();

void run_fiber() {
  for (;;) {
    kernel->run(*block);
    idle.push_back(running);
    // An idle fiber is next run when it is taken for threads that have not started.
    Fiber *self = running;
    Fiber *next = next_fiber();
    if (next) running = next;
    emulated_switch_stack(&self->stack_pointer, next ? next->stack_pointer : scheduler);
  }
}

// Stacks lie beside each other in large pages: one in a small page of its own would miss the TLB at each switch.
char *new_stack() {
  constexpr size_t large_page = 2 << 20, bytes = max_threads * stack_bytes;
  static char *next, *end;
  if (next == end) {
    void *stacks = mmap(nullptr, bytes + large_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) {
      perror("emulated device: stacks");
      abort();
    }
    next = static_cast<char *>(stacks) + (large_page - reinterpret_cast<uintptr_t>(stacks) % large_page);
    end = next + bytes;
    madvise(next, bytes, MADV_HUGEPAGE);
  }
  char *stack = next;
  next += stack_bytes;
  return stack;
}

Fiber *fresh_fiber() {
  if (!idle.empty()) {
    Fiber *f = idle.back();
    idle.pop_back();
    return f;
  }
  static unsigned made;
  auto *f = new Fiber;
  auto **top = reinterpret_cast<void **>(new_stack() + stack_bytes - made++ % staggered * stagger);
  *--top = nullptr;  // for the alignment of a stack after a call
  *--top = reinterpret_cast<void *>(run_fiber);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  f->stack_pointer = top;
  return f;
}

// Who runs next. Usually whoever was woken first, so that few stacks are in use where warps wait for themselves alone.
Fiber *next_fiber() {
  bool starts = block->started < block->threads;
  if (order == Order::normal) return ready.size ? ready.take_first() : starts ? fresh_fiber() : nullptr;
  if (starts && (!ready.size || order == Order::reverse || random_below(2))) return fresh_fiber();
  if (!ready.size) return nullptr;
  return ready.take(order == Order::random ? random_below(ready.size) : ready.size - 1);
}

// The running fiber waits; others run until it is woken.
void wait_until_woken() {
  Fiber *self = running, *next = next_fiber();
  if (next != self) {
    if (next) running = next;
    emulated_switch_stack(&self->stack_pointer, next ? next->stack_pointer : scheduler);
  }
  running = self;
  block->current = self->thread;
}

void open_barrier() {
  if (barrier.several_lines)
    complain(std::string(kernel->name) + ": block (" + std::to_string(block->index.x) + ", " + std::to_string(block->index.y) +
             ", " + std::to_string(block->index.z) + "): its threads wait at different barriers, one of them in line " +
             std::to_string(barrier.line));
  if (block->ended)
    complain(std::string(kernel->name) + ": threads had ended before the barrier in line " + std::to_string(barrier.line));
  for (unsigned i = 0; i < barrier.waiting; i++) ready.push(barrier.fiber[i]);
  block->waiting -= barrier.waiting;
  barrier.result = barrier.count;
  barrier.waiting = barrier.count = 0;
  barrier.several_lines = false;
}

// Wakes the lanes with this mask if all of them are there that still run.
void open_warp(unsigned index, uint32_t mask) {
  Warp &warp = warps[index];
  unsigned lanes = std::min(warp_size, block->threads - index * warp_size);
  uint32_t exist = ~0u >> (warp_size - lanes);
  uint32_t group = warp.waiting_with(mask);
  if (!group || group != (mask & exist & ~block->ended_lanes[index])) return;
  void *brought[warp_size];
  Combine combine = nullptr;
  for (unsigned lane = 0; lane < warp_size; lane++) {
    bool there = group >> lane & 1;
    brought[lane] = there ? warp.brought[lane] : nullptr;
    if (!there) continue;
    if (combine && warp.combine[lane] != combine)
      end_block(Fault::launch_failed, here() + "the lanes of its warp are at different operations");
    combine = warp.combine[lane];
  }
  combine(brought);
  warp.waiting &= ~group;
  if (!warp.waiting) warp.several_masks = false;
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (group >> lane & 1) ready.push(warp.fiber[lane]), block->waiting--;
}

[[noreturn]] void on_fault(int number, siginfo_t *info) {
  std::string text = here();
  auto address = reinterpret_cast<uint64_t>(info->si_addr);
  if (number == SIGFPE) end_block(Fault::launch_failed, text + "integer division by zero");
  if (number == SIGILL) end_block(Fault::launch_failed, text + "the compiler found that this cannot be reached");
  char hex[32];
  snprintf(hex, sizeof hex, "%p", info->si_addr);
  end_block(Fault::illegal_address, text + "an access to " + hex + ", " + describe(address));
}

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[std::size(signals)];

void handle(int number, siginfo_t *info, void *context) {
  if (in_kernel) on_fault(number, info);
  // Of the program itself: as if this handler were not there.
  auto which = std::find(std::begin(signals), std::end(signals), number) - std::begin(signals);
  struct sigaction &old = previous[which];
  if (old.sa_flags & SA_SIGINFO && old.sa_sigaction)
    old.sa_sigaction(number, info, context);
  else
    sigaction(number, &old, nullptr);  // the instruction faults anew
}

}  // namespace

Fault run_block(const Kernel &of, Block &with, std::string &what) {
  kernel = &of, block = &with, order = settings().order;
  block->started = block->waiting = block->ended = 0;
  std::fill_n(block->ended_lanes, max_warps, 0);
  fault = Fault::none;
  running = fresh_fiber();
  in_kernel = true;
  emulated_switch_stack(&scheduler, running->stack_pointer);
  in_kernel = false;
  if (fault == Fault::none && block->ended < block->threads) {
    fault = Fault::launch_failed;
    unsigned at_barrier = barrier.waiting;
    std::string where;
    for (unsigned i = 0; i < std::min(at_barrier, 1u); i++)
      where += "; " + std::to_string(at_barrier) + " wait at the barrier in line " + std::to_string(barrier.line) + ", one is " +
               describe_thread(barrier.fiber[i]->thread);
    for (unsigned w = 0; w < max_warps; w++) {
      if (!warps[w].waiting) continue;
      unsigned lane = __builtin_ctz(warps[w].waiting);
      where += "; " + std::to_string(__builtin_popcount(warps[w].waiting)) + " wait for lanes of their warp, one is " +
               describe_thread(warps[w].fiber[lane]->thread);
      break;
    }
    fault_text = std::string(kernel->name) + ": its threads wait at different places" + where;
  }
  what = fault_text;
  return fault;
}

void catch_faults() {
  // Of its own, since stacks of the program's threads may be small, and a thread may have none.
  static thread_local char handler_stack[64 << 10];
  stack_t stack{};
  stack.ss_sp = handler_stack, stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, nullptr);
  static bool installed;
  if (installed) return;
  installed = true;
  struct sigaction action {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  for (size_t i = 0; i < std::size(signals); i++) sigaction(signals[i], &action, &previous[i]);
}

}  // namespace emulated

using namespace emulated;

unsigned emulated_block_barrier(unsigned line, bool predicate) {
  if (barrier.waiting && barrier.line != line) barrier.several_lines = true;
  barrier.line = line;
  barrier.count += predicate;
  running->thread = block->current;
  barrier.fiber[barrier.waiting++] = running;
  block->waiting++;
  if (barrier.waiting == block->threads - block->ended) open_barrier();
  wait_until_woken();
  return barrier.result;
}

void emulated_warp_rendezvous(uint32_t mask, Combine combine, void *mine) {
  unsigned index = block->current / warp_size, lane = block->current % warp_size;
  Warp &warp = warps[index];
  if (!(mask >> lane & 1)) emulated_trap("it is not in the mask of its own operation");
  running->thread = block->current;
  warp.fiber[lane] = running, warp.brought[lane] = mine, warp.combine[lane] = combine, warp.mask[lane] = mask;
  if (warp.waiting && warp.common_mask != mask) warp.several_masks = true;
  warp.common_mask = mask;
  warp.waiting |= 1u << lane;
  block->waiting++;
  open_warp(index, mask);
  wait_until_woken();
}

void emulated_thread_ended() {
  if (barrier.waiting && barrier.waiting == block->threads - block->ended) open_barrier();
  unsigned index = block->current / warp_size;
  for (unsigned lane = 0; lane < warp_size; lane++)
    if (warps[index].waiting >> lane & 1) open_warp(index, warps[index].mask[lane]);
}

void emulated_trap(const char *why) { end_block(Fault::assertion, here() + why); }
