// CUDA C++ for g++. build.sh includes it before a kernel's source.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "../driver/interface.h"
#include "vector_types.h"

#define TINYGPT_EMULATED 1
#define __CUDACC__ 1
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

// Headers of the host use some of the names below otherwise: they come before.
#define __global__ EMULATED_GLOBAL
#ifndef EMULATED_LIST_KERNELS  // build.sh finds kernels by this word
#define EMULATED_GLOBAL
#endif
#define __device__
#define __host__
#define __constant__ static
// One block runs at a time; being thread-local gives the shared memory of a module a place of its own.
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition)

using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

static emulated::Block *emulated_block;
static emulated::Dim gridDim, blockDim, blockIdx, threadIdx;
static constexpr int warpSize = 32;

struct dim3 : emulated::Dim {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : Dim{x, y, z} {}
};

#undef assert
#define assert(condition) ((condition) ? (void)0 : emulated_trap("assertion failed: " #condition))
#define __trap() emulated_trap("trap")

#include "barriers.h"
#include "intrinsics.h"

#include "kernel.h"
