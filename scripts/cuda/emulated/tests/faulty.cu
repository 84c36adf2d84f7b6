// A kernel for each fault that the emulated device has to find. `in` and `out` have 64 floats; blocks have 64 threads.
#include "ptx_instructions.h"

extern "C" __global__ void copies(float *out, const float *in) { out[threadIdx.x] = in[threadIdx.x]; }

extern "C" __global__ void sums_without_barrier(float *out, const float *in) {
  __shared__ float row[64];
  row[threadIdx.x] = in[threadIdx.x];
  for (int s = 32; s > 0; s /= 2)
    if (threadIdx.x < s) row[threadIdx.x] += row[threadIdx.x + s];
  out[threadIdx.x] = row[0];
}
extern "C" __global__ void sums(float *out, const float *in) {
  __shared__ float row[64];
  row[threadIdx.x] = in[threadIdx.x];
  for (int s = 32; s > 0; s /= 2) {
    __syncthreads();
    if (threadIdx.x < s) row[threadIdx.x] += row[threadIdx.x + s];
  }
  __syncthreads();
  out[threadIdx.x] = row[0];
}
extern "C" __global__ void adds_what_shared_memory_held(float *out, const float *in) {
  __shared__ float row[64];
  row[threadIdx.x] += in[threadIdx.x];
  out[threadIdx.x] = row[threadIdx.x];
}

extern "C" __global__ void reads_before_its_copy(float *out, const float *in) {
  __shared__ float row[64];
  cp_async_4(&row[threadIdx.x], in + threadIdx.x, true);
  cp_async_commit();
  out[threadIdx.x] = row[threadIdx.x];
  cp_async_wait<0>();
}
extern "C" __global__ void copies_over_what_others_read(float *out, const float *in) {
  __shared__ float row[64];
  row[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  cp_async_4(&row[threadIdx.x], in + threadIdx.x, true);
  cp_async_commit();
  out[63 - threadIdx.x] = row[63 - threadIdx.x];
  __syncthreads();
  cp_async_wait<0>();
}

extern "C" __global__ void writes_beyond(float *out, const float *in) { out[threadIdx.x + 1] = in[threadIdx.x]; }
extern "C" __global__ void writes_before(float *out, const float *in) { out[static_cast<int>(threadIdx.x) - 1] = in[threadIdx.x]; }
extern "C" __global__ void reads_beyond(float *out, const float *in) { out[threadIdx.x] = in[threadIdx.x + 1]; }
extern "C" __global__ void reads_before(float *out, const float *in) { out[threadIdx.x] = in[static_cast<int>(threadIdx.x) - 1]; }
extern "C" __global__ void writes_beyond_shared(float *out, const float *in) {
  extern __shared__ float row[];
  row[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = row[threadIdx.x];
}
extern "C" __global__ void writes_half(float *out, const float *in) {
  if (threadIdx.x < 32) out[threadIdx.x] = in[threadIdx.x];
}

extern "C" __global__ void waits_in_two_places(float *out, const float *in) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}
extern "C" __global__ void waits_for_warp_and_block(float *out, const float *in) {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    out[threadIdx.x] = __shfl_xor_sync(0xffffffff, in[threadIdx.x], 1);
}
extern "C" __global__ void ends_before_a_barrier(float *out, const float *in) {
  if (threadIdx.x == 63) return;
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}
extern "C" __global__ void shuffles_from_an_ended_lane(float *out, const float *in) {
  if (threadIdx.x == 1) return;
  out[threadIdx.x] = __shfl_sync(0xffffffff, in[threadIdx.x], 1);
}
extern "C" __global__ void shuffles_outside_of_its_mask(float *out, const float *in) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffff, in[threadIdx.x], 1);
}
extern "C" __global__ void shuffles_and_votes_at_once(float *out, const float *in) {
  if (threadIdx.x % 2)
    out[threadIdx.x] = __ballot_sync(0xffffffff, 1);
  else
    out[threadIdx.x] = __shfl_xor_sync(0xffffffff, in[threadIdx.x], 1);
}
extern "C" __global__ void asserts(float *out, const float *in) {
  assert(threadIdx.x < 40);
  out[threadIdx.x] = in[threadIdx.x];
}
extern "C" __global__ void divides_by_zero(float *out, const float *in) { out[threadIdx.x] = in[5 / static_cast<int>(threadIdx.x)]; }
extern "C" __global__ void follows_addresses(float **table) { table[1][threadIdx.x] = table[0][threadIdx.x]; }
