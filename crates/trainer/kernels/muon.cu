// Muon but for its products: the momenta of all matrices, their scaling before the Newton-Schulz iterations, the polynomial of an
// iteration, and the update of the parameters.
//
// A launch goes over tiles of 32 x 32 elements of all matrices; a block finds its matrix in `table` by its own number. A matrix
// may lie beside others in its parameter; what is orthogonalised is a matrix of its own, and transposed where it is higher than
// wide.
#include "reduce.cuh"
#include "table.cuh"

namespace {

constexpr unsigned THREADS = 256, TILE = 32, ROWS = THREADS / TILE;

// A row of the table. The host (src/engine/tensors/kernels/muon.rs) writes the same ten words.
struct Matrix {
    unsigned long long param, grad;    // addresses of floats, of its first element
    unsigned long long first_block;    // of the launches over all matrices
    unsigned long long n_in, n_out;    // its rows and columns
    unsigned long long stride;         // the columns of its parameter
    unsigned long long slot;           // its first element in flat slots
    unsigned long long x;              // its first element in what is orthogonalised
    unsigned long long decay, scale;   // the bits of floats: what it is multiplied with first, what its step is multiplied with

    __device__ __forceinline__ unsigned long long tiles_across() const { return (n_out + TILE - 1) / TILE; }
    __device__ __forceinline__ unsigned long long tiles() const { return (n_in + TILE - 1) / TILE * tiles_across(); }
    __device__ __forceinline__ bool is_transposed() const { return n_in > n_out; }
};

// A tile of a matrix: its first row and column.
struct Tile {
    unsigned long long row, col;

    __device__ __forceinline__ Tile(const Matrix &a, unsigned long long block) {
        row = (block - a.first_block) / a.tiles_across() * TILE;
        col = (block - a.first_block) % a.tiles_across() * TILE;
    }
};

}  // namespace

// The momenta `m`, flat, with the gradients times a factor; and, in `x`, what is orthogonalised, of which `sums (blocks)` gets the
// sum of the squares of each block. `rest` is `1 - momentum`.
extern "C" __global__ void muon_momentum(const Matrix *table, unsigned matrices, const float *norm_and_factor, float *m, float *x,
                                         float *sums, float momentum, float rest) {
    __shared__ float turned[TILE][TILE + 1];
    const Matrix &a = *row_of(table, matrices, blockIdx.x);
    const Tile tile(a, blockIdx.x);
    const float *grad = reinterpret_cast<const float *>(a.grad);
    const float factor = norm_and_factor[1];
    const unsigned lane = threadIdx.x % TILE, warp = threadIdx.x / TILE;
    float sum = 0.0f;
    for (unsigned r = warp; r < TILE; r += ROWS) {
        const unsigned long long row = tile.row + r, col = tile.col + lane;
        if (row >= a.n_in || col >= a.n_out) continue;
        const unsigned long long at = row * a.stride + col;
        const float g = rest * (grad[at] * factor), m_new = momentum * m[a.slot + at] + g, ahead = momentum * m_new + g;
        m[a.slot + at] = m_new;
        sum += ahead * ahead;
        if (a.is_transposed()) turned[r][lane] = ahead;
        else x[a.x + row * a.n_out + col] = ahead;
    }
    if (a.is_transposed()) {
        __syncthreads();
        for (unsigned r = warp; r < TILE; r += ROWS) {
            const unsigned long long row = tile.row + lane, col = tile.col + r;
            if (row < a.n_in && col < a.n_out) x[a.x + col * a.n_in + row] = turned[lane][r];
        }
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Divides each matrix in `x` by 1.02 times its Frobenius norm, of which `sums (blocks)` has the squares.
extern "C" __global__ void muon_scale(const Matrix *table, unsigned matrices, const float *sums, float *x) {
    const Matrix &a = *row_of(table, matrices, blockIdx.x);
    float sum = 0.0f;
    for (unsigned long long i = threadIdx.x; i < a.tiles(); i += THREADS) sum += sums[a.first_block + i];
    const float divisor = 1.02f * sqrtf(block_sum<THREADS>(sum)) + 1e-7f;
    const unsigned long long first = (blockIdx.x - a.first_block) * TILE * TILE;
    for (unsigned k = threadIdx.x; k < TILE * TILE; k += THREADS)
        if (first + k < a.n_in * a.n_out) x[a.x + first + k] /= divisor;
}

// `square`, the squares of the matrices `gram (.., k, k)`, becomes `a I + b gram + c square`; `n` elements in all.
extern "C" __global__ void muon_polynomial(const float *gram, float *square, unsigned long long n, unsigned k, float a, float b, float c) {
    const unsigned long long threads = (unsigned long long)gridDim.x * THREADS;
    for (unsigned long long i = (unsigned long long)blockIdx.x * THREADS + threadIdx.x; i < n; i += threads) {
        const float sum = b * gram[i] + c * square[i];
        square[i] = i % k == i / k % k ? sum + a : sum;
    }
}

// Subtracts the orthogonalised matrices `x`, those of the rows of `table`, from the parameters after weight decay.
extern "C" __global__ void muon_update(const Matrix *table, unsigned matrices, const float *x) {
    __shared__ float turned[TILE][TILE + 1];
    const unsigned long long block = table->first_block + blockIdx.x;
    const Matrix &a = *row_of(table, matrices, block);
    const Tile tile(a, block);
    float *param = reinterpret_cast<float *>(a.param);
    const float decay = float_of(a.decay), scale = float_of(a.scale);
    const unsigned lane = threadIdx.x % TILE, warp = threadIdx.x / TILE;
    x += a.x - table->x;
    if (a.is_transposed()) {
        for (unsigned r = warp; r < TILE; r += ROWS) {
            const unsigned long long row = tile.row + lane, col = tile.col + r;
            if (row < a.n_in && col < a.n_out) turned[r][lane] = x[col * a.n_in + row];
        }
        __syncthreads();
    }
    for (unsigned r = warp; r < TILE; r += ROWS) {
        const unsigned long long row = tile.row + r, col = tile.col + lane;
        if (row >= a.n_in || col >= a.n_out) continue;
        const float step = a.is_transposed() ? turned[lane][r] : x[row * a.n_out + col];
        float &p = param[row * a.stride + col];
        p = p * decay - step * scale;
    }
}
