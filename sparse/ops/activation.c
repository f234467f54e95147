/* GELU and global response normalisation in two passes over the features, forward and backward.
 *
 * Compiled on demand by sparse/ops/compiler.py, for float alone. Features are [groups, rows,
 * channels]; responses are pooled over the rows of a group. Threads share out groups and blocks of
 * channels, so every sum has one order, whatever their number. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((int)(BYTES / sizeof(float)))
#define INLINE static inline __attribute__((always_inline))
#define BLOCK 256 /* channels that a thread takes at a time, 1 KB of each row */
#define RUN 32    /* rows that are summed in float, before their sum is added in double */

typedef float vec __attribute__((vector_size(BYTES)));
typedef int32_t ints __attribute__((vector_size(BYTES)));

typedef struct {
    int64_t groups, rows, channels, threads;
} Shape;

INLINE vec all(float value) { return (vec){0} + value; }

INLINE vec load(const float *from, int lanes) {
    vec value = {0};
    if (lanes == LANES) memcpy(&value, from, sizeof(vec));
    else memcpy(&value, from, lanes * sizeof(float));
    return value;
}

INLINE void store(float *to, vec value, int lanes) {
    if (lanes == LANES) memcpy(to, &value, sizeof(vec));
    else memcpy(to, &value, lanes * sizeof(float));
}

INLINE vec choose(ints condition, vec yes, vec no) {
    return (vec)((condition & (ints)yes) | (~condition & (ints)no));
}

/* exp of values from -87 to 0, to 1e-7 of it. */
INLINE vec exponential(vec x) {
    const vec shift = all(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    const vec shifted = x * 1.44269504f + shift, whole = shifted - shift;
    const vec r = x - whole * 0.693145752f - whole * 1.42860677e-6f; /* ln 2 in two parts */
    vec p = r * 1.38888889e-3f + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vec)((ints)p + (((ints)shifted - (ints)shift) << 23));
}

/* The normal distribution: P(X < x), to 1e-7, and exp(-x^2 / 2).
 *
 * P(X < -|x|) = t p(t) exp(-x^2 / 2), with t = 1 / (1 + 0.38 |x| / sqrt 2) and p a minimax
 * polynomial of degree 7, which is right to 1e-10. */
INLINE vec normal(vec x, vec *bell) {
    const vec size = (vec)((ints)x & 0x7fffffff);
    vec power = size * size * -0.5f;
    power = choose(power < -87.0f, all(-87.0f), power);
    *bell = exponential(power);
    const vec t = 1.0f / (1.0f + 0.268700577f * size);
    vec p = t * 0.0443679022f - 0.272773353f;
    p = p * t + 0.58912941f;
    p = p * t - 0.498919686f;
    p = p * t + 0.427903275f;
    p = p * t - 0.0284268505f;
    p = p * t + 0.133949796f;
    p = p * t + 0.104769507f;
    const vec tail = p * t * *bell;
    return choose(x < 0.0f, tail, 1.0f - tail);
}

INLINE void add_up(double *total, float *sums, int count) {
    for (int c = 0; c < count; ++c) total[c] += sums[c];
    memset(sums, 0, count * sizeof(float));
}

/* A group and some of its channels, of which share `share`. */
typedef struct {
    int64_t group, first;
    int count;
} Part;

INLINE Part part_of(const Shape *s, int64_t share) {
    const int64_t blocks = (s->channels + BLOCK - 1) / BLOCK, first = share % blocks * BLOCK;
    const int64_t rest = s->channels - first;
    return (Part){share / blocks, first, (int)(rest < BLOCK ? rest : BLOCK)};
}

#define FOR_EACH_PART                                                                             \
    _Pragma("omp parallel for num_threads(s->threads) schedule(static)") for (                    \
        int64_t share = 0; share < s->groups * ((s->channels + BLOCK - 1) / BLOCK); ++share)
#define FOR_EACH_VECTOR                                                                           \
    for (int c = 0, lanes; c < part.count && (lanes = part.count - c < LANES ? part.count - c : LANES); \
         c += LANES)

/* out = GELU(x), and energy [groups, channels]: the sums of its squares. */
void gelu_energy(const Shape *s, const float *x, float *out, double *energy) {
    FOR_EACH_PART {
        const Part part = part_of(s, share);
        float sums[BLOCK] = {0};
        double *total = energy + part.group * s->channels + part.first;
        memset(total, 0, part.count * sizeof(double));
        for (int64_t row = 0; row < s->rows; ++row) {
            const int64_t start = (part.group * s->rows + row) * s->channels + part.first;
            FOR_EACH_VECTOR {
                vec bell, value = load(x + start + c, lanes);
                value *= normal(value, &bell);
                store(out + start + c, value, lanes);
                store(sums + c, load(sums + c, lanes) + value * value, lanes);
            }
            if (row % RUN == RUN - 1) add_up(total, sums, part.count);
        }
        add_up(total, sums, part.count);
    }
}

/* x = x * scale + bias, in place; scale [groups, channels], bias [channels]. */
void scale_shift(const Shape *s, float *x, const float *scale, const float *bias) {
    FOR_EACH_PART {
        const Part part = part_of(s, share);
        const float *its = scale + part.group * s->channels + part.first;
        for (int64_t row = 0; row < s->rows; ++row) {
            float *at = x + (part.group * s->rows + row) * s->channels + part.first;
            FOR_EACH_VECTOR {
                const vec shift = load(bias + part.first + c, lanes);
                store(at + c, load(at + c, lanes) * load(its + c, lanes) + shift, lanes);
            }
        }
    }
}

/* by_scale and by_bias [groups, channels]: the sums of grad * GELU(x), and of grad. */
void gradient_sums(const Shape *s, const float *x, const float *grad, double *by_scale,
                   double *by_bias) {
    FOR_EACH_PART {
        const Part part = part_of(s, share);
        float scaled[BLOCK] = {0}, plain[BLOCK] = {0};
        double *total = by_scale + part.group * s->channels + part.first;
        double *other = by_bias + part.group * s->channels + part.first;
        memset(total, 0, part.count * sizeof(double));
        memset(other, 0, part.count * sizeof(double));
        for (int64_t row = 0; row < s->rows; ++row) {
            const int64_t start = (part.group * s->rows + row) * s->channels + part.first;
            FOR_EACH_VECTOR {
                vec bell, value = load(x + start + c, lanes), g = load(grad + start + c, lanes);
                value *= normal(value, &bell);
                store(scaled + c, load(scaled + c, lanes) + g * value, lanes);
                store(plain + c, load(plain + c, lanes) + g, lanes);
            }
            if (row % RUN == RUN - 1) {
                add_up(total, scaled, part.count);
                add_up(other, plain, part.count);
            }
        }
        add_up(total, scaled, part.count);
        add_up(other, plain, part.count);
    }
}

/* out = (grad * scale + GELU(x) * pull) * GELU'(x); scale and pull [groups, channels]. */
void gradient_by_input(const Shape *s, const float *x, const float *grad, const float *scale,
                       const float *pull, float *out) {
    FOR_EACH_PART {
        const Part part = part_of(s, share);
        const float *its_scale = scale + part.group * s->channels + part.first;
        const float *its_pull = pull + part.group * s->channels + part.first;
        for (int64_t row = 0; row < s->rows; ++row) {
            const int64_t start = (part.group * s->rows + row) * s->channels + part.first;
            FOR_EACH_VECTOR {
                vec bell;
                const vec value = load(x + start + c, lanes), below = normal(value, &bell);
                const vec by_gelu = load(grad + start + c, lanes) * load(its_scale + c, lanes) +
                                    value * below * load(its_pull + c, lanes);
                const vec slope = below + value * bell * 0.398942280f; /* 1 / sqrt(2 pi) */
                store(out + start + c, by_gelu * slope, lanes);
            }
        }
    }
}
