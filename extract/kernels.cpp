// What lies between the matrix products of a Llama-like block, each in one pass over memory (extract/packed.py), and means
// over spans of tokens (extract/pooling.py). Sums are in float32 whatever the tensors are. Built on the machine that runs
// it, by extract/kernels.py; nothing needs it, things are only slower without it. Vectors are GCC's own, so that the same
// lines serve AVX-512, AVX2 and ARM.
//
// Shape suffixes: N tokens of the batch one row after another, B rows, D width of the stream, M width of the MLP, H query
// heads, G key and value heads, K width of a head, P tokens of a shared prefix.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t QUERIES = 8;  // rows of a register block: enough independent sums to hide the latency of one
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint16_t bfloat16;

Floats load(const float *from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

Floats load(const bfloat16 *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
#ifdef __AVX512F__  // GCC 12 makes six instructions of the line below
    Words words = (Words)_mm512_cvtepu16_epi32((__m256i)halves);
#else
    Words words = __builtin_convertvector(halves, Words);
#endif
    return (Floats)(words << 16);
}

void store(float *to, Floats x) { std::memcpy(to, &x, sizeof x); }

void store(bfloat16 *to, Floats x) {  // to the nearest, ties to even
#ifdef __AVX512BF16__
    __m256bh halves = _mm512_cvtneps_pbh((__m512)x);
#else
    Words words = (Words)x;
    Halves halves = __builtin_convertvector((words + 0x7fff + ((words >> 16) & 1)) >> 16, Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}

// All lanes as one number: halves joined, and theirs, and so on.
template <typename Join>
float fold(Floats x, Join join) {
    float lanes[LANES];
    std::memcpy(lanes, &x, sizeof lanes);
    for (int64_t n = LANES / 2; n; n /= 2)
        for (int64_t i = 0; i < n; i++) lanes[i] = join(lanes[i], lanes[i + n]);
    return lanes[0];
}

float sum(Floats x) {
    return fold(x, [](float one, float other) { return one + other; });
}

float largest(Floats x) {
    return fold(x, [](float one, float other) { return one > other ? one : other; });
}

Floats clip(Floats x, float least, float most) {  // what is no number stays none
    Floats low = Floats{} + least, high = Floats{} + most;
    x = x < low ? low : x;
    return x > high ? high : x;
}

// e^x for x from -87 to 88, to about one unit in the last place: 2^n e^r, where x = n ln 2 + r. Coefficients: Cephes, expf.
Floats exponential(Floats x) {
    const float round = 12582912.0f;  // 1.5 x 2^23: adding it puts n into the lowest bits
    Floats shifted = x * 1.44269504088896341f + round, n = shifted - round;
    Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = (y * r) * r + r + 1.0f;
    return y * (Floats)(((Words)shifted << 23) + 0x3f800000);
}

template <typename T>
float root_mean_square(const T *x, int64_t width, float epsilon) {
    Floats squares = {};
    for (int64_t i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
    return std::sqrt(sum(squares) / (float)width + epsilon);
}

// x_ND += delta_ND where there is one; normed_ND = RMSNorm(x_ND) where it is asked for.
template <typename T>
void add_norm(T *x_ND, const T *delta_ND, const T *weight_D, float epsilon, T *normed_ND, int64_t N, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        T *x = x_ND + n * D;
        for (int64_t i = 0; delta_ND && i < D; i += LANES) store(x + i, load(x + i) + load(delta_ND + n * D + i));
        if (!normed_ND) continue;
        float scale = 1.0f / root_mean_square(x, D, epsilon);
        for (int64_t i = 0; i < D; i += LANES) store(normed_ND + n * D + i, load(x + i) * scale * load(weight_D + i));
    }
}

// out_NM = silu(gate) * up, of gate_up_N2M.
template <typename T>
void silu_mul(const T *gate_up_N2M, T *out_NM, int64_t N, int64_t M) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const T *gate = gate_up_N2M + n * 2 * M, *up = gate + M;
        for (int64_t i = 0; i < M; i += LANES) {
            Floats x = clip(load(gate + i), -88.0f, INFINITY);
            store(out_NM + n * M + i, x / (exponential(clip(-x, -87.0f, 88.0f)) + 1.0f) * load(up + i));
        }
    }
}

// mean_BD[b] = the mean of hidden_ND over tokens start_B[b] to stop_B[b].
template <typename T>
void span_mean(const T *hidden_ND, const int64_t *start_B, const int64_t *stop_B, float *mean_BD, int64_t B, int64_t D) {
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t b = 0; b < B; b++) {
        float *mean = mean_BD + b * D;
        std::fill(mean, mean + D, 0.0f);
        for (int64_t n = start_B[b]; n < stop_B[b]; n++)
            for (int64_t i = 0; i < D; i += LANES) store(mean + i, load(mean + i) + load(hidden_ND + n * D + i));
        const float length = (float)(stop_B[b] - start_B[b]);
        for (int64_t i = 0; i < D; i += LANES) store(mean + i, load(mean + i) / length);
    }
}

// One head of one token in float32, normed where the model does that (Qwen3), turned by its position and scaled.
template <typename T>
void turn(const T *x_K, const T *norm_K, float epsilon, const float *cos_K, const float *sin_K, float scale, int64_t K, float *out_K) {
    const int64_t half = K / 2;
    if (norm_K) scale /= root_mean_square(x_K, K, epsilon);
    for (int64_t i = 0; i < half; i += LANES) {
        Floats one = load(x_K + i) * scale, other = load(x_K + i + half) * scale;
        if (norm_K) {
            one *= load(norm_K + i);
            other *= load(norm_K + i + half);
        }
        store(out_K + i, one * load(cos_K + i) - other * load(sin_K + i));
        store(out_K + i + half, other * load(cos_K + i + half) + one * load(sin_K + i + half));
    }
}

// What a thread needs for one head of one row, in memory it is given: keys in tiles of LANES, [tile][K][LANES], so that scores
// need no sums across lanes; values as they are, [key][K]; all in float32. What lies behind the last key is not read.
struct Room {
    float *keys, *values, *queries, *scores, *row;
    int64_t most_keys;

    static int64_t whole_tiles(int64_t n_keys) { return (n_keys + LANES - 1) / LANES * LANES; }

    static int64_t size(int64_t n_keys, int64_t K) {
        const int64_t most = whole_tiles(n_keys);
        return 2 * most * K + QUERIES * K + QUERIES * most + K;
    }

    Room(float *memory, int64_t n_keys, int64_t K) : most_keys(whole_tiles(n_keys)) {
        keys = memory;
        values = keys + most_keys * K;
        queries = values + most_keys * K;
        scores = queries + QUERIES * K;
        row = scores + QUERIES * most_keys;
    }

    void put_key(int64_t key, const float *from_K, int64_t K) {
        float *tile = keys + key / LANES * LANES * K + key % LANES;
        for (int64_t i = 0; i < K; i++) tile[i * LANES] = from_K[i];
    }
};

// Softmax of the first `length` of some scores, without the division: zeros behind them, their sum returned.
float exponentials(float *scores, int64_t length, int64_t tiles) {
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Floats most = Floats{} - INFINITY;
    for (int64_t j = 0; j < tiles * LANES; j += LANES) {
        Floats x = lane + (int32_t)j < (int32_t)length ? load(scores + j) : Floats{} - INFINITY;
        store(scores + j, x);
        most = x > most ? x : most;
    }
    const float peak = largest(most);
    Floats total = {};
    for (int64_t j = 0; j < tiles * LANES; j += LANES) {
        Floats x = lane + (int32_t)j < (int32_t)length ? exponential(clip(load(scores + j) - peak, -87.0f, 0.0f)) : Floats{};
        store(scores + j, x);
        total += x;
    }
    return sum(total);
}

// Attention of up to QUERIES queries of one head to the keys up to their own: out += softmax(q k) v.
template <typename T>
void attend_block(Room &room, int64_t first_length, int64_t n_queries, int64_t K, T *out, int64_t out_stride) {
    const int64_t last_length = first_length + n_queries - 1, tiles = (last_length + LANES - 1) / LANES;
    const int64_t stride = room.most_keys;
    float *scores = room.scores;
    const float *queries = room.queries;
    for (int64_t tile = 0; tile < tiles; tile++) {
        Floats sums[QUERIES] = {};
        const float *keys = room.keys + tile * LANES * K;
        for (int64_t i = 0; i < K; i++)
            for (int64_t q = 0; q < QUERIES; q++) sums[q] += queries[q * K + i] * load(keys + i * LANES);
        for (int64_t q = 0; q < QUERIES; q++) store(scores + q * stride + tile * LANES, sums[q]);
    }
    float totals[QUERIES];
    for (int64_t q = 0; q < QUERIES; q++)
        totals[q] = exponentials(scores + q * stride, std::min(first_length + q, last_length), tiles);
    for (int64_t i = 0; i < K; i += 2 * LANES) {
        Floats one[QUERIES] = {}, other[QUERIES] = {};
        for (int64_t j = 0; j < last_length; j++) {
            const float *values = room.values + j * K + i;
            for (int64_t q = 0; q < QUERIES; q++) {
                one[q] += scores[q * stride + j] * load(values);
                other[q] += scores[q * stride + j] * load(values + LANES);
            }
        }
        for (int64_t q = 0; q < n_queries; q++) {
            store(out + q * out_stride + i, one[q] / totals[q]);
            store(out + q * out_stride + i + LANES, other[q] / totals[q]);
        }
    }
}

// Causal attention inside each row. qkv: (N, (H + 2G) K). begin_B: where each row begins, and the end of the last. cos and
// sin: by position, (positions, K). The prefix's keys (turned) and values are (G, P, K) and come before every row.
template <typename T>
void attend(const T *qkv, const int64_t *begin_B, int64_t B, const float *cos, const float *sin, const T *query_norm_K,
            const T *key_norm_K, const T *prefix_keys_GPK, const T *prefix_values_GPK, int64_t P, int64_t H, int64_t G,
            int64_t K, float scale, float epsilon, T *out_NHK, float *scratch, int64_t n_threads, int64_t room_size) {
    const int64_t stride = (H + 2 * G) * K;
    int64_t longest = 0;
    for (int64_t b = 0; b < B; b++) longest = std::max(longest, begin_B[b + 1] - begin_B[b]);
    const int64_t together = B > 64 ? G : 1;  // a row's heads lie in the same memory; few rows are shared out by head
#pragma omp parallel num_threads((int)n_threads)
    {
        Room room(scratch + omp_get_thread_num() * room_size, P + longest, K);
#pragma omp for schedule(dynamic, together)
        for (int64_t task = 0; task < B * G; task++) {
            const int64_t g = task % G, begin = begin_B[task / G], length = begin_B[task / G + 1] - begin;
            for (int64_t key = 0; key < P + length; key++) {
                const T *own = qkv + (begin + key - P) * stride + (H + g) * K;
                const T *value = key < P ? prefix_values_GPK + (g * P + key) * K : own + G * K;
                if (key < P) {
                    for (int64_t i = 0; i < K; i += LANES) store(room.row + i, load(prefix_keys_GPK + (g * P + key) * K + i));
                } else {
                    turn(own, key_norm_K, epsilon, cos + key * K, sin + key * K, 1.0f, K, room.row);
                }
                room.put_key(key, room.row, K);
                for (int64_t i = 0; i < K; i += LANES) store(room.values + key * K + i, load(value + i));
            }
            for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++) {
                for (int64_t first = 0; first < length; first += QUERIES) {
                    const int64_t n_queries = std::min(QUERIES, length - first);
                    for (int64_t q = 0; q < n_queries; q++) {
                        const int64_t position = P + first + q;
                        turn(qkv + (begin + first + q) * stride + h * K, query_norm_K, epsilon, cos + position * K,
                             sin + position * K, scale, K, room.queries + q * K);
                    }
                    attend_block(room, P + first + 1, n_queries, K, out_NHK + ((begin + first) * H + h) * K, H * K);
                }
            }
        }
    }
}

}  // namespace

// Numbers of float32 that each thread of `attend` needs, where rows have so many keys, the prefix's included.
extern "C" int64_t attend_room(int64_t n_keys, int64_t K) { return Room::size(n_keys, K); }

#define EXPORT(T, NAME)                                                                                                \
    extern "C" void add_norm_##NAME(T *x, const T *delta, const T *weight, float epsilon, T *normed, int64_t N, int64_t D) { \
        add_norm(x, delta, weight, epsilon, normed, N, D);                                                             \
    }                                                                                                                  \
    extern "C" void silu_mul_##NAME(const T *gate_up, T *out, int64_t N, int64_t M) { silu_mul(gate_up, out, N, M); }   \
    extern "C" void span_mean_##NAME(const T *hidden, const int64_t *start, const int64_t *stop, float *mean, int64_t B, int64_t D) { \
        span_mean(hidden, start, stop, mean, B, D);                                                                    \
    }                                                                                                                  \
    extern "C" void attend_##NAME(const T *qkv, const int64_t *begin, int64_t B, const float *cos, const float *sin,    \
                                  const T *query_norm, const T *key_norm, const T *prefix_keys, const T *prefix_values, \
                                  int64_t P, int64_t H, int64_t G, int64_t K, float scale, float epsilon, T *out,       \
                                  float *scratch, int64_t n_threads, int64_t room) {                                    \
        attend(qkv, begin, B, cos, sin, query_norm, key_norm, prefix_keys, prefix_values, P, H, G, K, scale, epsilon, out, \
               scratch, n_threads, room);                                                                              \
    }

EXPORT(bfloat16, bfloat16)
EXPORT(float, float32)
