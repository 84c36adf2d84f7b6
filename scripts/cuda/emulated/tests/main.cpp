// main CASE: one case of check.sh, by calls of the driver and of cuBLAS. Prints what these give, and for correct kernels what was
// wrong. Names of kernels are cases too.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

extern "C" {
int cuInit(unsigned), cuDevicePrimaryCtxRetain(void **, int), cuCtxSetCurrent(void *), cuStreamSynchronize(void *), cuCtxSynchronize();
int cuMemAllocAsync(uint64_t *, size_t, void *), cuMemFreeAsync(uint64_t, void *);
int cuMemcpyHtoDAsync_v2(uint64_t, const void *, size_t, void *), cuMemcpyDtoHAsync_v2(void *, uint64_t, size_t, void *);
int cuMemcpyDtoDAsync_v2(uint64_t, uint64_t, size_t, void *);
int cuModuleLoadData(void **, const void *), cuModuleGetFunction(void **, void *, const char *), cuFuncSetAttribute(void *, int, int);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
int cuEventCreate(void **, unsigned), cuEventRecord(void *, void *), cuStreamWaitEvent(void *, void *, unsigned);
int cuDeviceGetDefaultMemPool(void **, int), cuMemPoolGetAttribute(void *, int, void *), cuMemPoolSetAttribute(void *, int, void *);
int cublasCreate_v2(void **), cublasSetStream_v2(void *, void *);
int cublasGemmStridedBatchedEx(void *, int, int, int, int, int, const void *, const void *, int, int, long long, const void *, int, int,
                               long long, const void *, void *, int, int, long long, int, int, int);
}

static void *const stream = reinterpret_cast<void *>(2);  // the calling thread's
static void *context, *module;

static void *function(const std::string &name) {
  void *found = nullptr;
  if (int code = cuModuleGetFunction(&found, module, name.c_str())) {
    printf("no kernel: %d\n", code);
    exit(1);
  }
  return found;
}

template <class... Arguments>
static int launch(const std::string &name, unsigned grid, unsigned block, unsigned shared, Arguments... arguments) {
  void *pointers[] = {&arguments...};
  return cuLaunchKernel(function(name), grid, 1, 1, block, 1, 1, shared, stream, pointers, nullptr);
}

static uint64_t allocate(size_t bytes) {
  uint64_t at = 0;
  int code = cuMemAllocAsync(&at, bytes, stream);
  if (code) printf("allocation %d\n", code);
  return at;
}
template <class T>
static uint64_t upload(const std::vector<T> &values) {
  uint64_t at = allocate(values.size() * sizeof(T));
  cuMemcpyHtoDAsync_v2(at, values.data(), values.size() * sizeof(T), stream);
  return at;
}
template <class T>
static std::vector<T> read_back(uint64_t at, size_t n) {
  std::vector<T> values(n);
  if (int code = cuMemcpyDtoHAsync_v2(values.data(), at, n * sizeof(T), stream)) printf("read-back %d\n", code);
  return values;
}

static void verdict(bool right) { printf(right ? "right\n" : "WRONG\n"); }

// A number that a bfloat16 holds, and its bits.
static float small_number(unsigned i) { return static_cast<float>(static_cast<int>(i * 7 % 13) - 6) / 4; }
static uint16_t bf16_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return static_cast<uint16_t>(bits >> 16);
}

// Kernels that write a number of a failed check for each thread.
static void checks(const std::string &name) {
  uint64_t out = allocate(320 * sizeof(int));  // behind the results there is room for a kernel's own use
  printf("launch %d\n", launch(name, 1, 64, 0, out));
  for (int wrong : read_back<int>(out, 64)) {
    if (!wrong) continue;
    printf("check %d\n", wrong);
    return verdict(false);
  }
  verdict(true);
}

static void atomics() {
  uint64_t u = upload<unsigned>({0, 0, 0}), i = upload<int>({0, 0}), l = upload<unsigned long long>({0}), f = upload<float>({0});
  launch("atomics", 2, 64, 0, u, i, l, f);
  auto us = read_back<unsigned>(u, 3);
  auto is = read_back<int>(i, 2);
  verdict(us[0] == 128 && us[1] == 63 && us[2] == 7 && is[0] == -128 && is[1] == -63 &&
          read_back<unsigned long long>(l, 1)[0] == 128ull << 40 && read_back<float>(f, 1)[0] == 64);
}

static void row_sums(unsigned block, unsigned shared, bool prepared) {
  const int rows = 3, columns = 1000;
  std::vector<float> in(rows * columns);
  for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i % 17);
  uint64_t from = upload(in), to = allocate(rows * sizeof(float));
  if (prepared) printf("prepared %d\n", cuFuncSetAttribute(function("row_sums"), 8, static_cast<int>(shared)));
  if (int code = launch("row_sums", rows, block, shared, to, from, columns)) {
    printf("launch %d\n", code);
    return;
  }
  auto out = read_back<float>(to, rows);
  bool right = true;
  for (int r = 0; r < rows; r++) {
    float sum = 0;
    for (int c = 0; c < columns; c++) sum += in[r * columns + c];
    right &= out[r] == 2 * sum;
  }
  verdict(right);
}

// Tiles of 16 x N x 16, B by rows or by columns.
static void tensor_cores(const std::string &kernel, unsigned n, bool b_by_columns, float times) {
  std::vector<uint16_t> a(256), b(16 * n);
  for (unsigned i = 0; i < 256; i++) a[i] = bf16_bits(small_number(i));
  for (unsigned i = 0; i < 16 * n; i++) b[i] = bf16_bits(small_number(i + 5));
  uint64_t to = allocate(16 * n * sizeof(float)), da = upload(a), db = upload(b);
  printf("launch %d\n", launch(kernel, 1, 32, 0, to, da, db));
  auto c = read_back<float>(to, 16 * n);
  bool right = true;
  for (unsigned i = 0; i < 16; i++)
    for (unsigned j = 0; j < n; j++) {
      float sum = 0;
      for (unsigned k = 0; k < 16; k++) sum += small_number(i * 16 + k) * small_number((b_by_columns ? j * 16 + k : k * n + j) + 5);
      right &= c[i * n + j] == times * sum;
    }
  verdict(right);
}

// A batch of products of every layout, in f32 and bf16, against sums of whole numbers, which are exact.
static int gemm(bool a_transposed, bool b_transposed, long m, long n, long k, bool in_bf16, size_t missing) {
  void *handle;
  cublasCreate_v2(&handle), cublasSetStream_v2(handle, stream);
  const long batch = 2;
  auto number = [](long i) { return static_cast<float>(i * 5 % 11 - 5); };
  std::vector<float> a(m * k * batch), b(k * n * batch), c(m * n * batch, 3);
  std::vector<uint16_t> a16, b16, c16(c.size(), bf16_bits(3));
  for (size_t i = 0; i < a.size(); i++) a[i] = number(static_cast<long>(i));
  for (size_t i = 0; i < b.size(); i++) b[i] = number(static_cast<long>(i) + 3);
  for (float f : a) a16.push_back(bf16_bits(f));
  for (float f : b) b16.push_back(bf16_bits(f));
  a.resize(a.size() - missing);
  uint64_t da = in_bf16 ? upload(a16) : upload(a), db = in_bf16 ? upload(b16) : upload(b), dc = in_bf16 ? upload(c16) : upload(c);
  float alpha = 0.5f, beta = in_bf16 ? 0.0f : 2.0f;
  int type = in_bf16 ? 14 : 0;
  int code = cublasGemmStridedBatchedEx(
      handle, a_transposed, b_transposed, static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), &alpha,
      reinterpret_cast<void *>(da), type, static_cast<int>(a_transposed ? k : m), m * k, reinterpret_cast<void *>(db), type,
      static_cast<int>(b_transposed ? n : k), k * n, &beta, reinterpret_cast<void *>(dc), type, static_cast<int>(m), m * n, batch, 68, 0);
  if (code) return code;
  std::vector<float> out(c.size());
  if (in_bf16) {
    auto bits = read_back<uint16_t>(dc, c.size());
    for (size_t i = 0; i < bits.size(); i++) {
      uint32_t wide = static_cast<uint32_t>(bits[i]) << 16;
      memcpy(&out[i], &wide, 4);
    }
  } else {
    out = read_back<float>(dc, c.size());
  }
  for (long s = 0; s < batch; s++)
    for (long i = 0; i < m; i++)
      for (long j = 0; j < n; j++) {
        float sum = 0;
        for (long p = 0; p < k; p++)
          sum += number(s * m * k + (a_transposed ? p + i * k : i + p * m)) * number(s * k * n + (b_transposed ? j + p * n : p + j * k) + 3);
        float expected = alpha * sum + beta * 3, got = out[s * m * n + i + j * m];
        if (std::fabs(got - expected) > (in_bf16 ? std::fabs(expected) / 256 : 0)) return -1;
      }
  return 0;
}
static void products() {
  bool right = true;
  for (int layout = 0; layout < 4; layout++)
    for (bool in_bf16 : {false, true})
      for (long m : {1, 7, 40})
        for (long n : {1, 3, 5, 17})
          for (long k : {1, 33, 1030}) {
            int code = gemm(layout & 1, layout & 2, m, n, k, in_bf16, 0);
            if (code) printf("layout %d bf16 %d m %ld n %ld k %ld: %d\n", layout, in_bf16, m, n, k, code);
            right &= !code;
          }
  verdict(right);
}

static void pool() {
  void *handle = nullptr;
  uint64_t high = 0, zero = 0;
  printf("pool %d\n", cuDeviceGetDefaultMemPool(&handle, 0));
  uint64_t first = allocate(1000);
  cuMemFreeAsync(first, stream);
  cuMemPoolSetAttribute(handle, 8, &zero);
  allocate(300), allocate(200);
  cuMemPoolGetAttribute(handle, 8, &high);
  verdict(high == 500);
}

// What the kernels of faulty.cu are launched with, and what comes of it.
static void faulty(const std::string &name, unsigned grid, unsigned block, unsigned shared, bool written, bool freed, bool of_host) {
  std::vector<float> host(64);
  for (unsigned i = 0; i < 64; i++) host[i] = static_cast<float>(i);
  uint64_t in = allocate(256), out = allocate(256);
  if (written) cuMemcpyHtoDAsync_v2(in, host.data(), 256, stream);
  if (freed) cuMemFreeAsync(in, stream);
  printf("launch %d\n", launch(name, grid, block, shared, out, of_host ? reinterpret_cast<uint64_t>(host.data()) : in));
  auto back = read_back<float>(out, 64);
  printf("first %g\n", back[0]);
}

static void on_two_streams(bool waits) {
  uint64_t in = upload(std::vector<float>(64)), out = allocate(256);
  void *event;
  cuEventCreate(&event, 0), cuEventRecord(event, stream);
  std::thread([&] {
    cuCtxSetCurrent(context);
    if (waits) cuStreamWaitEvent(stream, event, 0);
    printf("launch %d\n", launch("copies", 1, 64, 0, out, in));
    cuCtxSynchronize();
  }).join();
}

static void follows_addresses() {
  uint64_t in = upload(std::vector<float>(64, 2)), out = allocate(256);
  uint64_t table = upload(std::vector<uint64_t>{in, out});
  printf("launch %d\n", launch("follows_addresses", 1, 64, 0, table));
  verdict(read_back<float>(out, 64)[63] == 2);
}

int main(int count, char **arguments) {
  std::string what = count > 1 ? arguments[1] : "";
  cuInit(0), cuDevicePrimaryCtxRetain(&context, 0), cuCtxSetCurrent(context), cuModuleLoadData(&module, "");
  if (what == "exchanges" || what == "numbers" || what == "small_floats" || what == "async_copies") checks(what);
  else if (what == "atomics") atomics();
  else if (what == "row_sums") row_sums(128, 512, false);
  else if (what == "much_shared") row_sums(128, 60000, true);
  else if (what == "much_shared_unasked") row_sums(128, 60000, false);
  else if (what == "too_much_shared") row_sums(128, 228 << 10, true);
  else if (what == "mma") tensor_cores("mma", 8, false, 1);
  else if (what == "wmma") tensor_cores("wmma_twice", 16, true, 2);
  else if (what == "products") products();
  else if (what == "product_beyond") printf("product %d\n", gemm(false, false, 8, 8, 8, false, 1));
  else if (what == "pool") pool();
  else if (what == "follows_addresses") follows_addresses();
  else if (what == "two_streams") on_two_streams(false);
  else if (what == "two_streams_with_an_event") on_two_streams(true);
  else if (what == "no_blocks") faulty("copies", 0, 64, 0, true, false, false);
  else if (what == "large_block") faulty("copies", 1, 1025, 0, true, false, false);
  else if (what == "unwritten") faulty("copies", 1, 64, 0, false, false, false);
  else if (what == "freed") faulty("copies", 1, 64, 0, true, true, false);
  else if (what == "of_the_host") faulty("copies", 1, 64, 0, true, false, true);
  else if (what == "writes_beyond_shared") faulty(what, 1, 64, 252, true, false, false);
  else if (what == "no_bytes") allocate(0);
  else if (what == "too_much_memory") allocate(3 << 20);
  else if (what == "copy_beyond") printf("copy %d\n", cuMemcpyDtoDAsync_v2(allocate(64), upload(std::vector<float>(64)), 68, stream));
  else if (what == "free_twice") {
    uint64_t at = allocate(64);
    cuMemFreeAsync(at, stream);
    printf("free %d\n", cuMemFreeAsync(at, stream));
  } else {
    faulty(what, 1, 64, 0, true, false, false);
  }
}
