// Kernels without a fault, of which main.cpp knows the results: what CUDA C++ has beyond candle's kernels.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "ptx_instructions.h"

constexpr unsigned all = 0xffffffff;

// out[i] = what a thread found wrong, as a number of the check; 0 if nothing.
#define EXPECT(number, condition) \
  if (!(condition) && !wrong) wrong = number

extern "C" __global__ void __launch_bounds__(64) exchanges(int *out) {
  int wrong = 0, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  EXPECT(1, __shfl_sync(all, lane, 5) == 5);
  EXPECT(2, __shfl_sync(all, lane, 3, 8) == (lane & ~7) + 3);
  EXPECT(3, __shfl_xor_sync(all, lane, 16) == (lane ^ 16));
  EXPECT(4, __shfl_up_sync(all, lane, 2) == (lane < 2 ? lane : lane - 2));
  EXPECT(5, __shfl_down_sync(all, lane, 30) == (lane < 2 ? lane + 30 : lane));
  EXPECT(6, __shfl_down_sync(all, lane, 1, 4) == (lane % 4 == 3 ? lane : lane + 1));
  EXPECT(7, __ballot_sync(all, lane % 2) == 0xaaaaaaaa);
  EXPECT(8, __any_sync(all, lane == 7) && !__any_sync(all, 0));
  EXPECT(9, __all_sync(all, 1) && !__all_sync(all, lane != 7));
  EXPECT(10, __shfl_xor_sync(all, 1.0 + lane, 1) == 1.0 + (lane ^ 1));
  // Halves of a warp may go their own ways.
  if (lane < 16) {
    EXPECT(11, __shfl_xor_sync(0xffff, lane, 1) == (lane ^ 1));
  } else {
    EXPECT(12, __shfl_xor_sync(0xffff0000, lane, 2) == (lane ^ 2));
  }
  EXPECT(13, __syncthreads_count(threadIdx.x < 40) == 40);
  EXPECT(14, __syncthreads_or(threadIdx.x == 63) && !__syncthreads_or(0));
  EXPECT(15, __syncthreads_and(1) && !__syncthreads_and(threadIdx.x != 63));
  out[threadIdx.x] = wrong + 0 * warp;
}

extern "C" __global__ void numbers(int *out) {
  int wrong = 0;
  EXPECT(1, __umulhi(0x80000000u, 6u) == 3 && __mulhi(-1, 1) == -1);
  EXPECT(2, __umul64hi(1ull << 63, 6) == 3);
  EXPECT(3, __popc(0xf0f0u) == 8 && __popcll(~0ull) == 64);
  EXPECT(4, __clz(1) == 31 && __clz(0) == 32 && __clzll(1) == 63 && __ffs(8) == 4 && __ffs(0) == 0);
  EXPECT(5, __brev(1u) == 0x80000000u && __funnelshift_l(0x80000000u, 1u, 1) == 3u && __funnelshift_r(1u, 1u, 1) == 0x80000000u);
  EXPECT(6, __float_as_uint(1.0f) == 0x3f800000 && __uint_as_float(0x40000000) == 2.0f && __int_as_float(__float_as_int(-3.0f)) == -3.0f);
  float a = 1.0f + 0x1p-12f;
  // The product has 24 more bits than a float; a fused one keeps them for the sum.
  EXPECT(7, __fmaf_rn(a, a, -1.0f) != __fadd_rn(__fmul_rn(a, a), -1.0f));
  EXPECT(8, __fadd_rn(__fmul_rn(a, a), -1.0f) == 0x1p-11f);
  EXPECT(9, __saturatef(1.5f) == 1 && __saturatef(-1.0f) == 0 && __saturatef(NAN) == 0);
  EXPECT(10, min(3, 5u) == 3 && max(2.0f, NAN) == 2.0f && min(4ll, 3) == 3);
  EXPECT(11, rsqrtf(4.0f) == 0.5f && __fdividef(1.0f, 4.0f) == 0.25f);
  out[threadIdx.x] = wrong;
}

extern "C" __global__ void small_floats(int *out) {
  int wrong = 0;
  // 1 + 2^-8 lies between two bfloat16, and goes to the even one; a little more goes up.
  EXPECT(1, __bfloat16_as_ushort(__float2bfloat16_rn(1.0f + 0x1p-8f)) == 0x3f80);
  EXPECT(2, __bfloat16_as_ushort(__float2bfloat16_rn(1.0f + 0x1p-8f + 0x1p-20f)) == 0x3f81);
  EXPECT(3, __bfloat16_as_ushort(__nv_bfloat16(1.0 + 0x1p-8 + 0x1p-40)) == 0x3f81);
  EXPECT(4, __half_as_ushort(__float2half(65504.0f)) == 0x7bff && __hisinf(__float2half(65520.0f)));
  EXPECT(5, __half2float(__float2half(0x1p-24f)) == 0x1p-24f && __half2float(__float2half(0x1p-26f)) == 0);
  EXPECT(6, __hisnan(__float2bfloat16(NAN)) && __hisnan(__float2half(NAN)));
  __nv_bfloat162 pair = __floats2bfloat162_rn(1.5f, -2.0f);
  float2 wide = __bfloat1622float2(pair);
  EXPECT(7, wide.x == 1.5f && wide.y == -2.0f && __low2float(pair) == 1.5f && __high2float(pair) == -2.0f);
  unsigned word;
  memcpy(&word, &pair, 4);
  EXPECT(8, word == 0xc0003fc0);
  __half2 sum = __hadd2(__floats2half2_rn(1, 2), __float2half2_rn(0.5f));
  EXPECT(9, __half22float2(sum).x == 1.5f && __half22float2(sum).y == 2.5f);
  EXPECT(10, __bfloat162float(__hfma(__nv_bfloat16(3.0f), __nv_bfloat16(5.0f), __nv_bfloat16(-14.0f))) == 1);
  float4 v = make_float4(1, 2, 3, 4);
  EXPECT(11, v.w == 4 && sizeof(float4) == 16 && alignof(float4) == 16 && alignof(float2) == 8 && sizeof(uint2) == 8);
  out[threadIdx.x] = wrong;
}

extern "C" __global__ void atomics(unsigned *u, int *i, unsigned long long *l, float *f) {
  atomicAdd(u, 1);
  atomicAdd(i, -1);
  atomicAdd(l, 1ull << 40);
  atomicAdd(f, 0.5f);
  atomicMax(u + 1, threadIdx.x);
  atomicMin(i + 1, -static_cast<int>(threadIdx.x));
  atomicCAS(u + 2, 0u, 7u);
  __threadfence();
}

extern __shared__ __align__(16) unsigned char raw[];

template <class T>
__device__ T sum_of_block(T value) {
  T *row = reinterpret_cast<T *>(raw);
  row[threadIdx.x] = value;
#pragma unroll
  for (unsigned s = blockDim.x / 2; s > 0; s /= 2) {
    __syncthreads();
    if (threadIdx.x < s) row[threadIdx.x] += row[threadIdx.x + s];
  }
  __syncthreads();
  return row[0];
}

__constant__ float twice[2] = {2, 2};

// The sum of each row, twice, by shared memory whose extent the launch says.
extern "C" __global__ void row_sums(float *__restrict__ out, const float *__restrict__ in, int columns) {
  float mine = 0;
  for (int c = threadIdx.x; c < columns; c += blockDim.x) mine += __ldg(in + blockIdx.x * columns + c);
  float sum = sum_of_block(mine);
  if (threadIdx.x == 0) out[blockIdx.x] = twice[0] * sum;
}

// Copies of a warp's two groups, the second of which has a source for half of its threads; then matrices of them, transposed.
extern "C" __global__ void __launch_bounds__(64) async_copies(int *out) {
  __shared__ __align__(16) unsigned short rows[2][32][8];
  __shared__ unsigned words[64];
  int wrong = 0;
  unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The source of all copies, which is memory of the device: 16 bytes for each thread.
  unsigned *own = reinterpret_cast<unsigned *>(out) + 64 + 4 * threadIdx.x;
  for (unsigned i = 0; i < 4; i++) own[i] = (8 * lane + 2 * i + 1) << 16 | (8 * lane + 2 * i);
  cp_async_16(rows[warp][lane], own, true);
  cp_async_commit();
  cp_async_4(&words[threadIdx.x], own + 1, lane < 16);
  cp_async_commit();
  EXPECT(1, rows[warp][lane][0] == 0xffff && words[threadIdx.x] == ~0u);
  cp_async_wait<1>();
  EXPECT(2, rows[warp][lane][7] == 8 * lane + 7 && words[threadIdx.x] == ~0u);
  cp_async_wait<0>();
  EXPECT(3, words[threadIdx.x] == (lane < 16 ? own[1] : 0));
  __syncwarp();
  unsigned d[4];
  ldmatrix_x4_trans(d, rows[warp][lane]);
  for (unsigned m = 0; m < 4; m++) {
    unsigned first = 8 * (8 * m + lane % 4 * 2) + lane / 4;
    EXPECT(4, d[m] == ((first + 8) << 16 | first));
  }
  EXPECT(5, exp2_approx(3) == 8 && exp2_approx(-INFINITY) == 0 && exp2_approx(-130) == 0);
  out[threadIdx.x] = wrong;
}

// C (16 x 8) = A (16 x 16) B (16 x 8), all by rows.
extern "C" __global__ void mma(float *c, const __nv_bfloat16 *a, const __nv_bfloat16 *b) {
  int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  unsigned ra[4], rb[2];
  for (int r = 0; r < 4; r++) ra[r] = *reinterpret_cast<const unsigned *>(&a[(group + r % 2 * 8) * 16 + pair + r / 2 * 8]);
  for (int r = 0; r < 2; r++) {
    unsigned low = __bfloat16_as_ushort(b[(pair + r * 8) * 8 + group]), high = __bfloat16_as_ushort(b[(pair + r * 8 + 1) * 8 + group]);
    rb[r] = high << 16 | low;
  }
  unsigned loaded[4];
  ldmatrix_x4(loaded, &a[threadIdx.x % 16 * 16 + threadIdx.x / 16 * 8]);
  for (int r = 0; r < 4; r++) assert(loaded[r] == ra[r]);
  float sums[4] = {};
  mma_m16n8k16_bf16(sums, ra, rb, sums);
  for (int e = 0; e < 4; e++) c[(group + e / 2 * 8) * 8 + pair + e % 2] = sums[e];
}

// C (16 x 16) = A B, B by columns, added to itself once.
extern "C" __global__ void wmma_twice(float *c, const __nv_bfloat16 *a, const __nv_bfloat16 *b) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums;
  wmma::fill_fragment(sums, 0.0f);
  wmma::load_matrix_sync(fa, a, 16);
  wmma::load_matrix_sync(fb, b, 16);
  wmma::mma_sync(sums, fa, fb, sums);
  wmma::mma_sync(sums, fa, fb, sums);
  wmma::store_matrix_sync(c, sums, 16, wmma::mem_row_major);
}
