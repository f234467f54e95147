/* Submanifold depthwise convolution on blocks of visible patches: value, input and weight gradient.
 *
 * Compiled on demand by sparse/compiled.py, once per REAL (float, double). Only visible patches are
 * read, and the work is proportional to their number. Every sum has one order, whatever the number
 * of threads: no two threads add to one value.
 *
 * blocks [N, K, m, m, C]; where [N, R, Q] is the number k of the visible patch at each place of the
 * patch grid, or -1; taps [kernel * kernel, P] are weights, P = C rounded up to 64 bytes. */

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
#define LANES ((int)(BYTES / sizeof(REAL)))
#define INLINE static inline __attribute__((always_inline))

typedef REAL vec __attribute__((vector_size(BYTES), aligned(16)));

typedef struct {
    int32_t images, visible, rows, columns, side, channels, kernel, threads;
} Shape;

/* Where the cells of a patch and of the ring around it lie in its image's blocks, or -1. */
static void find_cells(const Shape *s, const int32_t *where, int patch_row, int patch_column,
                       int32_t *cells) {
    const int m = s->side, ring = s->kernel / 2, width = m + 2 * ring;
    for (int y = 0; y < width; ++y) {
        const int row = patch_row * m + y - ring;
        for (int x = 0; x < width; ++x) {
            const int column = patch_column * m + x - ring;
            int cell = -1;
            if (row >= 0 && row < s->rows * m && column >= 0 && column < s->columns * m) {
                const int k = where[row / m * s->columns + column / m];
                if (k >= 0) cell = (k * m + row % m) * m + column % m;
            }
            cells[y * width + x] = cell;
        }
    }
}

/* Copy one vector of channels of each cell; absent cells and absent channels are zero. */
INLINE void load(const Shape *s, const REAL *image, const int32_t *cells, int count, int first,
                 vec *tile) {
    const int lanes = s->channels - first < LANES ? s->channels - first : LANES;
    for (int i = 0; i < count; ++i) {
        vec value = {0};
        if (cells[i] >= 0) {
            const REAL *source = image + (int64_t)cells[i] * s->channels + first;
            if (lanes == LANES) memcpy(&value, source, sizeof(vec));
            else memcpy(&value, source, lanes * sizeof(REAL));
        }
        tile[i] = value;
    }
}

/* `count` neighbouring outputs of one line. */
INLINE void convolve_run(const Shape *s, const vec *tile, const REAL *taps, int padded, vec bias,
                         REAL *out, int lanes, const int count) {
    const int width = s->side + s->kernel - 1;
    vec sums[8];
    for (int i = 0; i < count; ++i) sums[i] = bias;
    for (int y = 0; y < s->kernel; ++y)
        for (int x = 0; x < s->kernel; ++x) {
            const vec tap = *(const vec *)(taps + (int64_t)(y * s->kernel + x) * padded);
            for (int i = 0; i < count; ++i) sums[i] += tap * tile[y * width + x + i];
        }
    for (int i = 0; i < count; ++i) {
        const vec sum = sums[i]; /* a copy, or the address would keep the sums out of registers */
        REAL *target = out + (int64_t)i * s->channels;
        if (lanes == LANES) memcpy(target, &sum, sizeof(vec));
        else memcpy(target, &sum, lanes * sizeof(REAL));
    }
}

/* Gradient of `count` neighbouring taps, summed over the cells of one patch. */
INLINE void correlate_run(const Shape *s, const vec *tile, const vec *grad, vec *sums,
                          const int count) {
    const int m = s->side, width = m + s->kernel - 1;
    vec local[7];
    for (int i = 0; i < count; ++i) local[i] = sums[i];
    for (int y = 0; y < m; ++y)
        for (int x = 0; x < m; ++x) {
            const vec g = grad[y * m + x];
            for (int i = 0; i < count; ++i) local[i] += g * tile[y * width + x + i];
        }
    for (int i = 0; i < count; ++i) sums[i] = local[i];
}

/* C rounded up to 64 bytes, as the taps are stored. */
static int padded_channels(const Shape *s) {
    const int per_line = 64 / sizeof(REAL);
    return (s->channels + per_line - 1) / per_line * per_line;
}

static void *allocate(size_t size) { return aligned_alloc(64, (size + 63) / 64 * 64); }

/* places [N, K] is the place of each visible patch on the grid, row-major; bias [P]. */
void convolve(const Shape *s, const REAL *blocks, const int32_t *where, const int32_t *places,
              const REAL *taps, const REAL *bias, REAL *out) {
    const int m = s->side, width = m + s->kernel - 1, padded = padded_channels(s);
    const int64_t per_image = (int64_t)s->visible * m * m * s->channels;
#pragma omp parallel num_threads(s->threads)
    {
        int32_t *cells = allocate(sizeof(int32_t) * width * width);
        vec *tile = allocate(sizeof(vec) * width * width);
#pragma omp for schedule(static)
        for (int patch = 0; patch < s->images * s->visible; ++patch) {
            const int n = patch / s->visible, k = patch % s->visible, place = places[patch];
            const REAL *image = blocks + n * per_image;
            find_cells(s, where + n * s->rows * s->columns, place / s->columns,
                       place % s->columns, cells);
            for (int first = 0; first < s->channels; first += LANES) {
                const int rest = s->channels - first, lanes = rest < LANES ? rest : LANES;
                const vec start = *(const vec *)(bias + first);
                load(s, image, cells, width * width, first, tile);
                for (int y = 0; y < m; ++y) {
                    REAL *line = out + n * per_image + ((int64_t)k * m + y) * m * s->channels + first;
                    int x = 0;
#define RUN(COUNT)                                                                                \
    for (; x + COUNT <= m; x += COUNT)                                                            \
        convolve_run(s, tile + y * width + x, taps + first, padded, start,                        \
                     line + (int64_t)x * s->channels, lanes, COUNT);
                    RUN(8) RUN(4) RUN(2) RUN(1)
#undef RUN
                }
            }
        }
        free(cells);
        free(tile);
    }
}

/* Gradient of the taps and of the bias: sums [kernel * kernel + 1, P], the bias last. */
void correlate(const Shape *s, const REAL *blocks, const int32_t *where, const int32_t *places,
               const REAL *grad, REAL *sums) {
    const int m = s->side, width = m + s->kernel - 1, num_taps = s->kernel * s->kernel;
    const int vectors = (s->channels + LANES - 1) / LANES, padded = padded_channels(s);
    const int64_t per_image = (int64_t)s->visible * m * m * s->channels;
#pragma omp parallel for num_threads(s->threads) schedule(static)
    for (int share = 0; share < s->threads; ++share) {
        const int begin = vectors * share / s->threads, end = vectors * (share + 1) / s->threads;
        int32_t *cells = allocate(sizeof(int32_t) * (width * width + m * m)), *own = cells + width * width;
        vec *tile = allocate(sizeof(vec) * (width * width + m * m)), *g = tile + width * width;
        vec *total = allocate(sizeof(vec) * (end - begin) * (num_taps + 1));
        memset(total, 0, sizeof(vec) * (end - begin) * (num_taps + 1));
        for (int patch = 0; patch < s->images * s->visible; ++patch) {
            const int n = patch / s->visible, k = patch % s->visible, place = places[patch];
            find_cells(s, where + n * s->rows * s->columns, place / s->columns,
                       place % s->columns, cells);
            for (int i = 0; i < m * m; ++i) own[i] = k * m * m + i;
            for (int v = begin; v < end; ++v) {
                vec *sum = total + (v - begin) * (num_taps + 1);
                load(s, blocks + n * per_image, cells, width * width, v * LANES, tile);
                load(s, grad + n * per_image, own, m * m, v * LANES, g);
                for (int y = 0; y < s->kernel; ++y) {
                    int x = 0;
#define RUN(COUNT)                                                                                \
    for (; x + COUNT <= s->kernel; x += COUNT)                                                    \
        correlate_run(s, tile + y * width + x, g, sum + y * s->kernel + x, COUNT);
                    RUN(7) RUN(4) RUN(2) RUN(1)
#undef RUN
                }
                for (int i = 0; i < m * m; ++i) sum[num_taps] += g[i];
            }
        }
        for (int v = begin; v < end; ++v)
            for (int tap = 0; tap <= num_taps; ++tap)
                memcpy(sums + (int64_t)tap * padded + v * LANES,
                       total + (v - begin) * (num_taps + 1) + tap, sizeof(vec));
        free(cells);
        free(tile);
        free(total);
    }
}
