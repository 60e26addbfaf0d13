// Scrambled Sobol' points as normals, for the elements of a tile: part of the noise stream's contract, which is in
// kernels/noise/README.md; kernels/noise/reference.py implements it readably.
#pragma once

#include "noise/kernel.hpp"
#include "simd/tile.hpp"

namespace lk {
namespace LK_ISA {

constexpr int kSobolBits = 16;  // for up to 2^16 samples

// The normal quantile of (word + 1/2) 2^-32, for words that are the bits of floats. With h twice the smaller of the two
// tail probabilities and c = 1 - h it is c times a function of -ln(1 - c^2) = -ln(h (2 - h)) (Giles 2010), here a
// polynomial of that or of its root.
template <class V>
LK_INLINE V normal_quantile(V word) {
  constexpr float center[] = {2.338620901107788f,       0.3396347463130951f,     -0.008533752523362637f,
                              -0.0010472283465787768f,  0.00026481517124921083f, -1.974185579456389e-05f,
                              -2.1541602563956985e-06f, 6.160152565826138e-07f,  -1.2343207345111296e-08f,
                              -7.155822601134787e-09f};
  constexpr float tail[] = {4.7170891761779785f,    1.4246336221694946f,     0.004638552665710449f,
                            -0.002905744593590498f, 0.0015194336883723736f,  -0.0009969838429242373f,
                            0.0006720743840560317f, -0.0002888193994294852f, 4.875424565398134e-05f};
  constexpr int32_t largest = 0x7FFFFFFF;
  const auto magnitude = [](F w) { return bit_cast<I>(w) ^ (bit_cast<I>(w) >> 31); };
  const V h = fma(map([&](F w) { return to_float(magnitude(w)); }, word), 0x1p-31f, 0x1p-32f);
  const V c = fma(map([&](F w) { return to_float(largest - magnitude(w)); }, word), 0x1p-31f, 0x1p-32f);
  const V w = ln(h * (-h + 2.0f)) * -1.0f, root = map([](F x) { return sqrt(x); }, w);
  const auto choose = [](F w, F near, F far) { return w < 6.25f ? near : far; };
  const V size = c * map(choose, w, horner(center, w - 3.125f), horner(tail, root - 3.5f));
  // The upper half of the words is positive.
  return map([](F x, F w) { return bit_cast<F>(bit_cast<U>(x) ^ (~bit_cast<U>(w) & 0x80000000u)); }, size, word);
}

// The points of a tile's elements, each a Sobol' sequence of its column with a scramble of its own.
class SobolTile {
 public:
  // `directions` [bits, cols] are those of all columns; e is the tile's place in the stream and `plane` the distance
  // between planes of its words.
  void start(const uint32_t* directions, int bits, int64_t cols, uint64_t seed, uint64_t e, int64_t plane,
             const Tile& tile) {
    alignas(64) float buffer[noise_length(kTile)];
    n = tile.size();
    next = -1;
    std::memset(direction, 0, sizeof(direction[0]) * static_cast<size_t>(bits));
    for (int k = -1; k < bits; ++k) {
      const uint64_t at = e + static_cast<uint64_t>(k + 1) * static_cast<uint64_t>(plane);
      const float* words = noise_tile<kScrambles>(seed, at, n, buffer);
      std::memcpy(k < 0 ? shift : column, words, sizeof(float) * static_cast<size_t>(n));
      if (k < 0) continue;
      for (int i = 0; i < n; ++i) column[i] = (0x80000000u >> k) | (column[i] >> (k + 1));
      for (int j = k; j < bits; ++j)
        for (int r = 0; r < tile.rows; ++r)
          add_column(column + r * tile.cols, directions + j * cols + tile.col0, 31 - k, tile.cols,
                     direction[j] + r * tile.cols);
    }
  }

  // Writes the normals of samples s, ..., s + count - 1 side by side.
  void draw(int64_t s, int count, float* out) {
    const size_t bytes = sizeof(float) * static_cast<size_t>(n);
    for (int c = 0; c < count; ++c) {
      move_to(s + c);
      std::memcpy(out + c * n, point, bytes);
    }
    each<float, W == 16 ? 4 : 2>(n * count,
                                 [&](int64_t i, auto k) { store(out + i, normal_quantile(load(out + i, k)), k); });
  }

 private:
  // Sample s is the point of Gray code s ^ s / 2, so that neighbours differ by one direction.
  void move_to(int64_t s) {
    if (s == next) {
      add(direction[__builtin_ctzll(static_cast<uint64_t>(s))]);
    } else {
      std::memcpy(point, shift, sizeof(uint32_t) * static_cast<size_t>(n));
      for (int j = 0; j < kSobolBits; ++j)
        if (((s ^ (s >> 1)) >> j) & 1) add(direction[j]);
    }
    next = s + 1;
  }

  // Adds a column of the scrambles to the directions that have this bit.
  static void add_column(const uint32_t* __restrict column, const uint32_t* __restrict of_columns, int bit, int cols,
                         uint32_t* __restrict to) {
    for (int i = 0; i < cols; ++i) to[i] ^= column[i] & -((of_columns[i] >> bit) & 1u);
  }

  void add(const uint32_t* __restrict of) {
    for (int i = 0; i < n; ++i) point[i] ^= of[i];
  }

  int n;
  int64_t next;
  alignas(64) uint32_t direction[kSobolBits][kTile], shift[kTile], column[kTile], point[kTile];
};

}  // namespace LK_ISA
}  // namespace lk
