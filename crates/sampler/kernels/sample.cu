// Draws of tokens from rows of logits, by all rules. The tensor operations of `crates/sampler/src/device/` draw the same tokens: weights
// are the same integers, and sums of integers are the same in every order.
//
// Three kernels, each of which reads the logits once, a row by several blocks; the last block of a row to finish does what is left:
//
// 1. `sample_largest`: the largest and the smallest logit, and the first NaN and +inf. Greedy rows, and rows without a draw, end here.
// 2. `sample_bins`, with top-k or top-p: count and weight of each bin of logits, and so the bins in which the rules cut.
// 3. `sample_draw`: the weight of the bins that are kept whole, tile by tile, and the candidates, which are the tokens of the bins that are
//    cut; then the cuts among the candidates, the tile of the drawn token, and in it the token.
//
// `sample_rows` does all three with one block for each row.
#include "row.cuh"
#include "select.cuh"

namespace {

// What a row's answer is: a token, or the token at fault.
enum Answer : unsigned { TOKEN, NOT_A_NUMBER, POSITIVE_INFINITY, NOTHING_FINITE };

struct Shared {
    float tile[TILE];
    union {
        struct {
            Sums<BINS> weights;
            unsigned counts[BINS];
        } bins;
        Selection selection;
    };
    u64 of_warps[WARPS], found_before, found_through;
    unsigned found, first_place;
    bool is_last;
};

// The tiles of a block: `part` of `blocks` of a row.
struct Tiles {
    unsigned begin, end;

    __device__ __forceinline__ Tiles(const Rules *rules, unsigned part) {
        const unsigned tiles = tiles_of(rules), each = (tiles + rules->blocks - 1) / rules->blocks;
        begin = min(part * each, tiles);
        end = min(begin + each, tiles);
    }
};

// Whether the row has its answer once its largest logit is known.
__device__ __forceinline__ bool is_answered(const Row *row) {
    return row->is_greedy || row->best == 0 || row->first_nan != NONE || row->first_infinity != NONE;
}

// A row: its number, the part of this block, and where everything of it is.
struct Task {
    Logits logits;
    Rules *rules;
    Row *row;
    Memory memory;
    unsigned *answer;
    unsigned part;

    __device__ __forceinline__ Task(const void *logits_of_all, Rules *of_all, u64 *memory_of_all, unsigned *answers) {
        rules = of_all;
        const unsigned index = blockIdx.x / rules->blocks;
        part = blockIdx.x % rules->blocks;
        logits = {logits_of_all, (u64)index * rules->vocab};
        row = row_of(rules, index);
        memory = memory_of(rules, memory_of_all, index);
        answer = answers + 2 * index;
    }

    __device__ __forceinline__ void find_largest(Shared &shared) const {
        if (searches(rules))
#pragma unroll 1
            for (unsigned i = part * THREADS + threadIdx.x; i < BINS; i += rules->blocks * THREADS)
                memory.bin_weights[i] = memory.bin_counts[i] = 0;
        u64 best = 0;
        unsigned lowest = NONE, first_nan = NONE, first_infinity = NONE;
        const Tiles tiles(rules, part);
        for (unsigned t = tiles.begin; t < tiles.end; t++) {
            load_tile(shared.tile, logits, rules, row, t);
            for (unsigned n = 0; n < PER_THREAD; n++) {
                const unsigned i = n * THREADS + threadIdx.x, token = t * TILE + i;
                const float x = shared.tile[i];
                if (x != x) {
                    first_nan = min(first_nan, token);
                } else if (x == INFINITY) {
                    first_infinity = min(first_infinity, token);
                } else if (x > -INFINITY) {
                    best = max(best, order_of(x, token));
                    lowest = min(lowest, key_of(x));
                }
            }
        }
        if (first_nan != NONE) atomicMin(&row->first_nan, first_nan);
        if (first_infinity != NONE) atomicMin(&row->first_infinity, first_infinity);
        best = block_reduce(best, shared.of_warps, [](u64 a, u64 b) { return max(a, b); });
        lowest = block_reduce(lowest, (unsigned *)shared.of_warps, [](unsigned a, unsigned b) { return min(a, b); });
        if (threadIdx.x == 0) {
            atomicMax(&row->best, best);
            atomicMin(&row->lowest, lowest);
        }
        if (!is_last_block(&row->finished[0], rules->blocks, &shared.is_last) || threadIdx.x > 0 || !is_answered(row)) return;
        if (row->first_nan != NONE)
            set_answer(NOT_A_NUMBER, row->first_nan);
        else if (row->first_infinity != NONE)
            set_answer(POSITIVE_INFINITY, row->first_infinity);
        else if (row->best == 0)
            set_answer(NOTHING_FINITE, 0);
        else
            set_answer(TOKEN, token_of(row->best));
    }

    __device__ __forceinline__ void find_bins(Shared &shared) const {
        if (is_answered(row)) return;
        auto &bins = shared.bins;
#pragma unroll 1
        for (unsigned bin = threadIdx.x; bin < BINS; bin += THREADS) {
            bins.weights.clear(bin);
            bins.counts[bin] = 0;
        }
        const Scale scale(row);
        const bool by_count = rules->top_k > 0, by_weight = rules->top_p < ONE;
        const Tiles tiles(rules, part);
        for (unsigned t = tiles.begin; t < tiles.end; t++) {
            load_tile(shared.tile, logits, rules, row, t);
            for (unsigned n = 0; n < PER_THREAD; n++) {
                const float exponent = scale.exponent(shared.tile[n * THREADS + threadIdx.x]);
                if (!scale.has_weight(exponent)) continue;
                const unsigned bin = scale.bin(exponent);
                if (by_count) atomicAdd(&bins.counts[bin], 1u);
                if (by_weight) bins.weights.add(bin, scale.weight(exponent));
            }
        }
        __syncthreads();
#pragma unroll 1
        for (unsigned bin = threadIdx.x; bin < BINS; bin += THREADS) {
            if (by_count && bins.counts[bin]) atomicAdd(&memory.bin_counts[bin], bins.counts[bin]);
            if (by_weight && bins.weights.at(bin)) atomicAdd(&memory.bin_weights[bin], bins.weights.at(bin));
        }
        if (is_last_block(&row->finished[1], rules->blocks, &shared.is_last)) find_cuts(shared);
    }

    // The bins in which the rules cut. With both rules, the weight of what top-k keeps is known but for the bin that it cuts, so that
    // top-p may cut in one of several bins.
    __device__ __forceinline__ void find_cuts(Shared &shared) const {
        const unsigned bin = 2 * threadIdx.x;  // and the next one
        const u64 weights[2] = {memory.bin_weights[bin], memory.bin_weights[bin + 1]};
        const u64 before = block_prefix_sum(weights[0] + weights[1], shared.of_warps).before;
        u64 below = block_reduce(before + weights[0] + weights[1], shared.of_warps, [](u64 a, u64 b) { return max(a, b); });
        u64 through = below;
        unsigned k_bin = NONE, k_left = 0;
        if (rules->top_k > 0) {
            const unsigned counts[2] = {memory.bin_counts[bin], memory.bin_counts[bin + 1]};
            const u64 counted = block_prefix_sum(counts[0] + counts[1], shared.of_warps).before;
            k_bin = bin_reaching(rules->top_k, bin, counted, counts[0], counts[1], shared);
            if (k_bin != NONE) {
                k_left = rules->top_k - (unsigned)shared.found_before;
                __syncthreads();
                if (bin == k_bin - k_bin % 2) {
                    shared.found_before = before + (k_bin % 2 ? weights[0] : 0);
                    shared.found_through = shared.found_before + weights[k_bin % 2];
                }
                __syncthreads();
                below = shared.found_before;
                through = shared.found_through;
            }
        }
        unsigned p_bins = k_bin, p_bins_end = k_bin;
        u64 before_p = 0;
        if (rules->top_p < ONE) {
            p_bins = bin_reaching(max(fraction_of(below, rules->top_p), 1ull), bin, before, weights[0], weights[1], shared);
            before_p = shared.found_before;
            p_bins_end =
                1 + bin_reaching(max(fraction_of(through, rules->top_p), 1ull), bin, before, weights[0], weights[1], shared);
        }
        if (threadIdx.x == 0) {
            row->before_p = before_p;
            row->before_k = below;
            row->p_bins = p_bins;
            row->p_bins_end = p_bins_end;
            row->k_bin = k_bin;
            row->k_left = k_left;
        }
        __syncthreads();
    }

    // The first bin up to which the sum reaches the target, or NONE; the sum before it is left in `found_before`. This thread has the
    // bins `bin` and `bin + 1`, with `first` and `second` of the sum, and `before` is before them.
    __device__ __forceinline__ static unsigned bin_reaching(u64 target, unsigned bin, u64 before, u64 first, u64 second,
                                                            Shared &shared) {
        __syncthreads();
        if (threadIdx.x == 0) shared.found = NONE;
        __syncthreads();
        if (before < target && target <= before + first + second) {
            const bool is_second = target > before + first;
            shared.found = bin + is_second;
            shared.found_before = before + (is_second ? first : 0);
        }
        __syncthreads();
        return shared.found;
    }

    __device__ __forceinline__ void draw(Shared &shared) const {
        if (is_answered(row)) return;
        const Scale scale(row);
        const unsigned p_bins = row->p_bins, p_bins_end = row->p_bins_end, k_bin = row->k_bin;
        const Tiles tiles(rules, part);
        for (unsigned t = tiles.begin; t < tiles.end; t++) {
            load_tile(shared.tile, logits, rules, row, t);
            u64 weight = 0;
            unsigned count = 0;
            u64 candidates[PER_THREAD];
            for (unsigned n = 0; n < PER_THREAD; n++) {
                const unsigned i = n * THREADS + threadIdx.x;
                const float x = shared.tile[i], exponent = scale.exponent(x);
                if (!scale.has_weight(exponent)) continue;
                const unsigned bin = scale.bin(exponent);
                if (bin < p_bins)
                    weight += scale.reaches_min_p(x) ? scale.weight(exponent) : 0;
                else if (bin < p_bins_end || bin == k_bin)
                    candidates[count++] = order_of(x, t * TILE + i);
            }
            // One sum for both: the weights of a tile are below 2^52, and it has less than 2^12 candidates.
            const Prefix sum = block_prefix_sum(weight << 12 | count, shared.of_warps);
            if (threadIdx.x == 0) {
                memory.tile_weights[t] = sum.total >> 12;
                const unsigned of_tile = sum.total & 4095;
                if (of_tile) shared.first_place = atomicAdd(&row->candidates, of_tile);
            }
            __syncthreads();
            // In another order each time, perhaps, but nothing depends on it.
            for (unsigned n = 0; n < count; n++) memory.candidates[shared.first_place + (unsigned)(sum.before & 4095) + n] = candidates[n];
        }
        if (is_last_block(&row->finished[2], rules->blocks, &shared.is_last)) draw_token(cut(scale, shared), scale, shared);
    }

    // The last token that top-k and top-p keep, by its order; 0 keeps all. Adds the candidates to the weights of the tiles.
    __device__ __forceinline__ u64 cut(const Scale &scale, Shared &shared) const {
        const unsigned n = row->candidates, k_bin = row->k_bin;
        if (n == 0) return 0;
        const u64 *candidates = memory.candidates;
        u64 last = 0, kept = row->before_k;
        if (k_bin != NONE) {
            const auto is_in_bin = [&](u64 candidate) { return scale.bin(scale.exponent(logit_of(candidate))) == k_bin; };
            last = select(candidates, n, row->k_left, [&](u64 candidate) { return (u64)is_in_bin(candidate); }, shared.selection);
            u64 weight = 0;
#pragma unroll 1
            for (unsigned i = threadIdx.x; i < n; i += THREADS)
                if (candidates[i] >= last && is_in_bin(candidates[i])) weight += weight_of(candidates[i], scale);
            kept += block_prefix_sum(weight, shared.of_warps).total;
        }
        if (rules->top_p < ONE) {
            const u64 target = max(fraction_of(kept, rules->top_p), 1ull) - row->before_p, k_last = last;
            const auto mass = [&](u64 candidate) { return candidate >= k_last ? weight_of(candidate, scale) : 0; };
            last = select(candidates, n, target, mass, shared.selection);
        }
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < n; i += THREADS) {
            const u64 candidate = candidates[i];
            if (candidate >= last && scale.reaches_min_p(logit_of(candidate)))
                atomicAdd(&memory.tile_weights[token_of(candidate) / TILE], weight_of(candidate, scale));
        }
        __threadfence();
        __syncthreads();
        return last;
    }

    __device__ __forceinline__ static u64 weight_of(u64 candidate, const Scale &scale) {
        return scale.weight(scale.exponent(logit_of(candidate)));
    }

    // The first token, of those up to `last`, at which the weights in the order of the vocabulary exceed the uniform number.
    __device__ __forceinline__ void draw_token(u64 last, const Scale &scale, Shared &shared) const {
        const unsigned tiles = tiles_of(rules);
        u64 weight = 0;
#pragma unroll 1
        for (unsigned t = threadIdx.x; t < tiles; t += THREADS) weight += memory.tile_weights[t];
        const u64 total = block_prefix_sum(weight, shared.of_warps).total;
        if (total <= rules->adaptive) {
            if (threadIdx.x == 0) set_answer(TOKEN, token_of(row->best));
            return;
        }
        const u64 target = fraction_of(total, row->uniform);
        u64 passed = 0;
        for (unsigned first = 0; first < tiles && passed <= target; first += THREADS) {
            const unsigned t = first + threadIdx.x;
            const u64 here = t < tiles ? memory.tile_weights[t] : 0;
            const Prefix sum = block_prefix_sum(here, shared.of_warps);
            if (passed + sum.before <= target && target < passed + sum.before + here) {
                shared.found = t;
                shared.found_before = passed + sum.before;
            }
            passed += sum.total;
        }
        __syncthreads();
        const unsigned tile = shared.found;
        load_tile(shared.tile, logits, rules, row, tile);
        const unsigned own = PER_THREAD * threadIdx.x;
        u64 weights[PER_THREAD], sum = 0;
        for (unsigned i = 0; i < PER_THREAD; i++) {
            const float x = shared.tile[own + i], exponent = scale.exponent(x);
            const bool is_kept = scale.has_weight(exponent) && scale.reaches_min_p(x) && order_of(x, tile * TILE + own + i) >= last;
            sum += weights[i] = is_kept ? scale.weight(exponent) : 0;
        }
        u64 through = shared.found_before + block_prefix_sum(sum, shared.of_warps).before;
        for (unsigned i = 0; i < PER_THREAD; i++) {
            if (through <= target && target < through + weights[i]) set_answer(TOKEN, tile * TILE + own + i);
            through += weights[i];
        }
    }

    __device__ __forceinline__ void set_answer(Answer kind, unsigned token) const {
        answer[0] = kind;
        answer[1] = token;
    }
};

}  // namespace

extern "C" __global__ __launch_bounds__(THREADS, 2) void sample_largest(const void *logits, Rules *rules, u64 *memory, unsigned *answers) {
    __shared__ Shared shared;
    Task(logits, rules, memory, answers).find_largest(shared);
}

extern "C" __global__ __launch_bounds__(THREADS, 2) void sample_bins(const void *logits, Rules *rules, u64 *memory, unsigned *answers) {
    __shared__ Shared shared;
    Task(logits, rules, memory, answers).find_bins(shared);
}

extern "C" __global__ __launch_bounds__(THREADS, 2) void sample_draw(const void *logits, Rules *rules, u64 *memory, unsigned *answers) {
    __shared__ Shared shared;
    Task(logits, rules, memory, answers).draw(shared);
}

extern "C" __global__ __launch_bounds__(THREADS, 2) void sample_rows(const void *logits, Rules *rules, u64 *memory, unsigned *answers) {
    __shared__ Shared shared;
    const Task task(logits, rules, memory, answers);
    task.find_largest(shared);
    if (searches(rules)) task.find_bins(shared);
    task.draw(shared);
}
