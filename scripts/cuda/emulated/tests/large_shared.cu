// More shared memory of a fixed extent than nvcc takes.
extern "C" __global__ void large(float *out) {
  __shared__ float rows[12289];
  rows[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = rows[threadIdx.x ^ 1];
}
